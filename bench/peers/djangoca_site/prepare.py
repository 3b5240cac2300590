"""Makes the tables, a CA and a user, and prints the CA's serial. Run once, in django-ca's own environment."""

import sys

import django
from django.core.management import call_command

django.setup()

from django.contrib.auth.models import User  # noqa: E402 - models exist after setup
from django_ca.models import CertificateAuthority  # noqa: E402 - models exist after setup

call_command("migrate", verbosity=0)
call_command("init_ca", "bench", "CN=bench", key_type="EC", stdout=sys.stderr)
authority = CertificateAuthority.objects.get()
authority.api_enabled = True
authority.save()
User.objects.create_superuser("bench", password="bench")
print(authority.serial)
