"""The tables for SQLAlchemy Core. Migrations create them; a test in `tests/store` compares the two.

They use only types and clauses that SQLite and every PostgreSQL-compatible engine support.
"""

from clustercert.store.tables.audit import audit_checkpoint as audit_checkpoint
from clustercert.store.tables.audit import audit_event as audit_event
from clustercert.store.tables.audit import audit_log as audit_log
from clustercert.store.tables.audit import audit_place as audit_place
from clustercert.store.tables.audit import audit_tile as audit_tile
from clustercert.store.tables.audit import audit_unsealed as audit_unsealed
from clustercert.store.tables.clusters import client_ca as client_ca
from clustercert.store.tables.clusters import cluster as cluster
from clustercert.store.tables.clusters import unknown_identity as unknown_identity
from clustercert.store.tables.clusters import webhook_token as webhook_token
from clustercert.store.tables.columns import Utc as Utc
from clustercert.store.tables.columns import metadata as metadata
from clustercert.store.tables.identity import access_key as access_key
from clustercert.store.tables.identity import domain as domain
from clustercert.store.tables.identity import federated_user as federated_user
from clustercert.store.tables.identity import group as group
from clustercert.store.tables.identity import group_member as group_member
from clustercert.store.tables.identity import login_network as login_network
from clustercert.store.tables.identity import project as project
from clustercert.store.tables.identity import role as role
from clustercert.store.tables.identity import role_assignment as role_assignment
from clustercert.store.tables.identity import service_role as service_role
from clustercert.store.tables.identity import token as token
from clustercert.store.tables.identity import user as user
from clustercert.store.tables.ledger import certificate as certificate
from clustercert.store.tables.ledger import revocation as revocation
from clustercert.store.tables.ledger import username as username
from clustercert.store.tables.service import data_key as data_key
from clustercert.store.tables.service import generation as generation
from clustercert.store.tables.service import lease as lease
from clustercert.store.tables.service import migration as migration
from clustercert.store.tables.service import progress as progress
