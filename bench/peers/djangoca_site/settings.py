"""Django's settings, from the environment that the benchmark sets. Names are Django's and django-ca's.

This folder is the smallest site that serves django-ca's REST API; it runs in an environment of its own.
"""

import os

SECRET_KEY = "of a database that is thrown away"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django_ca"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": os.environ["BENCH_POSTGRES_PORT"],
        "NAME": os.environ["BENCH_POSTGRES_DATABASE"],
        "USER": "bench",
        "CONN_MAX_AGE": None,  # a connection is kept, as ours are
    }
}
# Its API takes a name and a password with each request. With Django's own password hash it checks passwords and does
# little else; it is spared that where it is compared.
if "BENCH_CHEAP_PASSWORDS" in os.environ:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "django-ca": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": os.environ["BENCH_FOLDER"]},
    },
}
CA_ENABLE_REST_API = True
CA_USE_CELERY = False
