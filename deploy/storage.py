"""What outlives a deployment of the services: queue, table, lake, audit copy, secrets. Kept when the stack goes."""

import json
from typing import Any, Final

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from deploy.lake_catalog import LAKE_PREFIX, RESULTS_PREFIX, LakeCatalog
from deploy.network import PORTS
from deploy.settings import DeploySettings
from services.runtime.dynamodb_table import EXPIRES, PARTITION, SORT

EXPORT_PREFIX: Final = "export"
BATCHES_PREFIX: Final = "batches"
"""Manifests and reports of one-shot tasks."""

TLS_FIELDS: Final = ("certificate", "key", "authority")
"""Of a TLS secret: the PEMs of a service's chain, its key, and the authority that all check each other against."""


class StorageStack(Stack):
    """Queue with dead letters, table, buckets, catalogue and secrets."""

    def __init__(self, scope: Construct, construct_id: str, settings: DeploySettings, **given: Any) -> None:
        super().__init__(
            scope, construct_id, description="Tapewatch: queue, table, lake, audit copy and secrets", **given
        )
        self._removal = RemovalPolicy.RETAIN if settings.keep_data else RemovalPolicy.DESTROY
        self.dead_letters, self.queue = self._queues(settings)
        self.table = self._table("Table", settings.name, settings)
        warm = settings.dispatch.mode == "warm"
        self.progress = self._table("Progress", f"{settings.name}-ingest", settings)
        self.ledger = None if warm else self._table("Ledger", f"{settings.name}-ledger", settings)
        self._logs_bucket = self._bucket("AccessLogs", lifecycle_rules=[s3.LifecycleRule(expiration=Duration.days(90))])
        self.audit = self._audit(settings)
        self.lake = self._lake(settings)
        LakeCatalog(self, "Catalog", self.lake, settings)
        self.schedules = scheduler.CfnScheduleGroup(self, "Schedules", name=settings.name)
        self._export(settings)
        self.token = secretsmanager.Secret(
            self,
            "Token",
            secret_name=f"{settings.name}/token",
            description="The bearer token that the mesh's servers ask for",
            generate_secret_string=secretsmanager.SecretStringGenerator(
                exclude_punctuation=True, include_space=False, password_length=48
            ),
            removal_policy=self._removal,
        )
        self.tls = {
            service: secretsmanager.Secret(
                self,
                f"{service.capitalize()}Tls",
                secret_name=f"{settings.name}/tls/{service}",
                description=f"PEMs of {service}: {', '.join(TLS_FIELDS)}; deploy/certificates.py fills it",
                removal_policy=self._removal,
            )
            for service in (*PORTS, "lambda")
        }

    def _queues(self, settings: DeploySettings) -> tuple[sqs.Queue, sqs.Queue]:
        retention = Duration.days(settings.queue.retention_days)
        dead_letters = sqs.Queue(
            self,
            "DeadLetters",
            queue_name=settings.queue.dead_letters_name,
            fifo=True,
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=Duration.days(14),
            removal_policy=self._removal,
        )
        queue = sqs.Queue(
            self,
            "Queue",
            queue_name=settings.queue.name,
            fifo=True,
            content_based_deduplication=False,  # the sender's id says what is equal
            deduplication_scope=sqs.DeduplicationScope.MESSAGE_GROUP,
            fifo_throughput_limit=sqs.FifoThroughputLimit.PER_MESSAGE_GROUP_ID,
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=retention,
            visibility_timeout=Duration.seconds(settings.dispatch.visibility_seconds),
            dead_letter_queue=sqs.DeadLetterQueue(
                max_receive_count=settings.queue.max_receive_count, queue=dead_letters
            ),
            removal_policy=self._removal,
        )
        return dead_letters, queue

    def _table(self, construct_id: str, name: str, settings: DeploySettings) -> dynamodb.Table:
        return dynamodb.Table(
            self,
            construct_id,
            table_name=name,
            partition_key=dynamodb.Attribute(name=PARTITION, type=dynamodb.AttributeType.STRING),
            sort_key=dynamodb.Attribute(name=SORT, type=dynamodb.AttributeType.STRING),
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            time_to_live_attribute=EXPIRES,
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            deletion_protection=settings.keep_data,
            removal_policy=self._removal,
        )

    def _bucket(self, construct_id: str, **given: object) -> s3.Bucket:
        return s3.Bucket(
            self,
            construct_id,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            removal_policy=self._removal,
            **given,
        )

    def _audit(self, settings: DeploySettings) -> s3.Bucket:
        days = Duration.days(365 * settings.audit.retention_years)
        retention = s3.ObjectLockRetention
        locked = retention.compliance(days) if settings.audit.lock_mode == "COMPLIANCE" else retention.governance(days)
        return self._bucket(
            "Audit",
            versioned=True,
            object_lock_enabled=True,
            object_lock_default_retention=locked,
            server_access_logs_bucket=self._logs_bucket,
            server_access_logs_prefix="audit/",
        )

    def _lake(self, settings: DeploySettings) -> s3.Bucket:
        older = [
            s3.Transition(
                storage_class=s3.StorageClass.INFREQUENT_ACCESS,
                transition_after=Duration.days(settings.lake.infrequent_access_days),
            ),
            s3.Transition(
                storage_class=s3.StorageClass.GLACIER_INSTANT_RETRIEVAL,
                transition_after=Duration.days(settings.lake.glacier_days),
            ),
        ]
        rules = [
            s3.LifecycleRule(id="older-parts", prefix=f"{LAKE_PREFIX}/", transitions=older),
            s3.LifecycleRule(id="query-results", prefix=f"{RESULTS_PREFIX}/", expiration=Duration.days(7)),
            s3.LifecycleRule(id="task-batches", prefix=f"{BATCHES_PREFIX}/", expiration=Duration.days(30)),
            s3.LifecycleRule(
                id="exports-are-in-the-audit-bucket", prefix=f"{EXPORT_PREFIX}/", expiration=Duration.days(14)
            ),
            s3.LifecycleRule(
                id="what-was-replaced-or-broken-off",
                noncurrent_version_expiration=Duration.days(30),
                abort_incomplete_multipart_upload_after=Duration.days(7),
            ),
        ]
        copied = [
            s3.ReplicationRule(
                id=f"{name}-to-audit",
                destination=self.audit,
                priority=priority,
                filter=s3.Filter(prefix=prefix),
                delete_marker_replication=False,
                metrics=s3.ReplicationTimeValue.FIFTEEN_MINUTES,
                replication_time_control=s3.ReplicationTimeValue.FIFTEEN_MINUTES,
            )
            for priority, (name, prefix) in enumerate(
                (("changes", f"{LAKE_PREFIX}/changes/"), ("exports", f"{EXPORT_PREFIX}/"))
            )
        ]
        return self._bucket(
            "Lake",
            versioned=True,  # replication asks for it
            lifecycle_rules=rules,
            replication_rules=copied,
            server_access_logs_bucket=self._logs_bucket,
            server_access_logs_prefix="lake/",
        )

    def _export(self, settings: DeploySettings) -> None:
        """The whole table, audit events included, into the lake's bucket once a week; replication locks its copy."""
        role = iam.Role(
            self,
            "ExportRole",
            assumed_by=iam.ServicePrincipal("scheduler.amazonaws.com"),
            description="Exports the table for the audit copy",
        )
        role.add_to_policy(
            iam.PolicyStatement(actions=["dynamodb:ExportTableToPointInTime"], resources=[self.table.table_arn])
        )
        role.add_to_policy(
            iam.PolicyStatement(
                # What AWS's guide asks for, the ACL's permission included, although the bucket takes no ACLs.
                actions=["s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload"],
                resources=[self.lake.arn_for_objects(f"{EXPORT_PREFIX}/*")],
            )
        )
        export = scheduler.CfnSchedule(
            self,
            "Export",
            name=f"{settings.name}-audit-export",
            group_name=self.schedules.name,
            schedule_expression=f"cron(0 3 ? * {settings.audit.export_days} *)",
            flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(
                mode="FLEXIBLE", maximum_window_in_minutes=60
            ),
            target=scheduler.CfnSchedule.TargetProperty(
                arn="arn:aws:scheduler:::aws-sdk:dynamodb:exportTableToPointInTime",
                role_arn=role.role_arn,
                input=json.dumps(
                    {
                        "TableArn": self.table.table_arn,
                        "S3Bucket": self.lake.bucket_name,
                        "S3Prefix": EXPORT_PREFIX,
                        "ExportFormat": "DYNAMODB_JSON",
                    }
                ),
            ),
        )
        export.add_resource_dependency(self.schedules)
