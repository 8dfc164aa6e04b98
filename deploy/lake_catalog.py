"""The lake's tables for Athena: columns from the very schemas that the gateway writes, partitions by projection."""

from typing import Any, Final

import pyarrow as pa
from aws_cdk import aws_athena as athena
from aws_cdk import aws_glue as glue
from aws_cdk import aws_s3 as s3
from constructs import Construct

from deploy.settings import DeploySettings
from services.archive.lake import SCHEMA
from services.gateway.lake import CHANGES_SCHEMA

LAKE_PREFIX: Final = "lake"
"""Of the bucket; the gateway's LAKE_URI is s3://bucket/lake."""

TABLES: Final = {"quotes": SCHEMA, "changes": CHANGES_SCHEMA}
RESULTS_PREFIX: Final = "athena"
_FIRST_DAY = "2020-01-01"
_SIMPLE = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float64(): "double",
}


def athena_type(kind: "pa.DataType") -> str:
    """The Athena type of a column.

    >>> athena_type(pa.list_(pa.struct([("name", pa.string()), ("n", pa.int32())])))
    'array<struct<name:string,n:int>>'
    """
    if isinstance(kind, pa.TimestampType):
        return "timestamp"
    if isinstance(kind, pa.ListType):
        return f"array<{athena_type(kind.value_type)}>"
    if isinstance(kind, pa.StructType):
        return f"struct<{','.join(f'{field.name}:{athena_type(field.type)}' for field in kind)}>"
    return _SIMPLE[kind]


def columns(schema: "pa.Schema") -> list[dict[str, str]]:
    """The schema's columns as Glue takes them."""
    return [{"name": field.name, "type": athena_type(field.type)} for field in schema]


class LakeCatalog(Construct):
    """A Glue database with a table for each part of the lake, and an Athena work group with a limit on scans."""

    def __init__(self, scope: Construct, construct_id: str, bucket: s3.IBucket, settings: DeploySettings) -> None:
        super().__init__(scope, construct_id)
        account = bucket.stack.account
        name = settings.name.replace("-", "_")
        database = glue.CfnDatabase(
            self,
            "Database",
            catalog_id=account,
            database_input=glue.CfnDatabase.DatabaseInputProperty(name=name, description="Tapewatch's lake"),
        )
        for table, schema in TABLES.items():
            location = f"s3://{bucket.bucket_name}/{LAKE_PREFIX}/{table}"
            made = glue.CfnTable(
                self,
                table.capitalize(),
                catalog_id=account,
                database_name=name,
                table_input=glue.CfnTable.TableInputProperty(
                    name=table,
                    table_type="EXTERNAL_TABLE",
                    parameters=_projection(location),
                    partition_keys=[glue.CfnTable.ColumnProperty(name="dt", type="string")],
                    storage_descriptor=glue.CfnTable.StorageDescriptorProperty(
                        columns=[glue.CfnTable.ColumnProperty(**column) for column in columns(schema)],
                        location=f"{location}/",
                        input_format="org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
                        output_format="org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
                        serde_info=glue.CfnTable.SerdeInfoProperty(
                            serialization_library="org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe"
                        ),
                    ),
                ),
            )
            made.add_resource_dependency(database)
        athena.CfnWorkGroup(
            self,
            "WorkGroup",
            name=settings.name,
            recursive_delete_option=not settings.keep_data,
            work_group_configuration=athena.CfnWorkGroup.WorkGroupConfigurationProperty(
                bytes_scanned_cutoff_per_query=settings.lake.query_limit_gib * 1024**3,
                enforce_work_group_configuration=True,
                publish_cloud_watch_metrics_enabled=True,
                result_configuration=athena.CfnWorkGroup.ResultConfigurationProperty(
                    output_location=f"s3://{bucket.bucket_name}/{RESULTS_PREFIX}/",
                    encryption_configuration=athena.CfnWorkGroup.EncryptionConfigurationProperty(
                        encryption_option="SSE_S3"
                    ),
                ),
            ),
        )


def _projection(location: str) -> dict[str, Any]:
    """Partitions that follow from the day, so that no crawler runs and a new day is there at once."""
    return {
        "classification": "parquet",
        "projection.enabled": "true",
        "projection.dt.type": "date",
        "projection.dt.format": "yyyy-MM-dd",
        "projection.dt.range": f"{_FIRST_DAY},NOW+1DAYS",
        "storage.location.template": f"{location}/dt=${{dt}}/",
    }
