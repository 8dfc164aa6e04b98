"""Reading at scale: alerts over WebSocket (AppSync Events), and DAX for detections by key. Both are optional.

A stack of its own, because no local emulator takes these resources: it is linted, never deployed by the checks.
"""

from typing import Any, Final

from aws_cdk import Stack
from aws_cdk import aws_appsync as appsync
from aws_cdk import aws_dax as dax
from aws_cdk import aws_iam as iam
from constructs import Construct

from deploy.network import NetworkStack
from deploy.settings import DeploySettings
from deploy.storage import StorageStack

NAMESPACE: Final = "alerts"
"""Of the channels: /alerts/<tape>/<SYMBOL> (services/gateway/appsync.py)."""

_ITEM_TTL_MILLIS = "3600000"
"""What the gateway takes from DAX never changes (docs/data-model.md), so an hour is no staler than a minute."""


class ServingStack(Stack):
    """AppSync Events API with the namespace `alerts`, and a DAX cluster."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: DeploySettings,
        network: NetworkStack,
        storage: StorageStack,
        **given: Any,
    ) -> None:
        super().__init__(scope, construct_id, description="Tapewatch: alert push and detection cache", **given)
        self.api = self._events(settings) if settings.serving.events else None
        self.cluster = self._dax(settings, network, storage) if settings.serving.dax else None

    def _events(self, settings: DeploySettings) -> appsync.EventApi:
        kind = appsync.AppSyncAuthorizationType
        providers = [appsync.AppSyncAuthProvider(authorization_type=kind.IAM)]
        readers = [kind.IAM]
        if settings.serving.oidc_issuer:
            readers.append(kind.OIDC)
            providers.append(
                appsync.AppSyncAuthProvider(
                    authorization_type=kind.OIDC,
                    open_id_connect_config=appsync.AppSyncOpenIdConnectConfig(
                        oidc_provider=settings.serving.oidc_issuer
                    ),
                )
            )
        api = appsync.EventApi(
            self,
            "Alerts",
            api_name=f"{settings.name}-alerts",
            authorization_config=appsync.EventApiAuthConfig(
                auth_providers=providers,
                connection_auth_mode_types=readers,
                default_publish_auth_mode_types=[kind.IAM],  # only the gateway speaks
                default_subscribe_auth_mode_types=readers,
            ),
        )
        api.add_channel_namespace(NAMESPACE)
        return api

    def _dax(self, settings: DeploySettings, network: NetworkStack, storage: StorageStack) -> dax.CfnCluster:
        role = iam.Role(
            self,
            "CacheRole",
            assumed_by=iam.ServicePrincipal("dax.amazonaws.com"),
            description="Tapewatch DAX: reads detections by key",
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Table", actions=["dynamodb:GetItem", "dynamodb:DescribeTable"], resources=[storage.table.table_arn]
            )
        )
        subnets = dax.CfnSubnetGroup(
            self, "CacheSubnets", subnet_ids=network.vpc.select_subnets(subnet_group_name="mesh").subnet_ids
        )
        parameters = dax.CfnParameterGroup(
            self,
            "CacheParameters",
            parameter_name_values={"record-ttl-millis": _ITEM_TTL_MILLIS, "query-ttl-millis": "60000"},
        )
        return dax.CfnCluster(
            self,
            "Cache",
            iam_role_arn=role.role_arn,
            node_type=settings.serving.dax_node_type,
            replication_factor=settings.serving.dax_nodes,
            cluster_endpoint_encryption_type="TLS",
            sse_specification=dax.CfnCluster.SSESpecificationProperty(sse_enabled=True),
            subnet_group_name=subnets.ref,
            parameter_group_name=parameters.ref,
            security_group_ids=[network.groups.cache.security_group_id],
        )

    def let_gateway_use(self, role: iam.Role) -> dict[str, str]:
        """Permit the gateway what it needs of this stack; the environment that tells it where."""
        environment = {}
        if self.api is not None:
            role.add_to_policy(
                iam.PolicyStatement(
                    sid="AlertPush",
                    actions=["appsync:EventPublish"],
                    resources=[self.api.api_arn + f"/channelNamespace/{NAMESPACE}"],
                )
            )
            environment["APPSYNC_ENDPOINT"] = f"https://{self.api.http_dns}/event"
        if self.cluster is not None:
            role.add_to_policy(
                iam.PolicyStatement(sid="Cache", actions=["dax:GetItem"], resources=[self.cluster.attr_arn])
            )
            environment["DAX_ENDPOINT"] = self.cluster.attr_cluster_discovery_endpoint_url
        return environment
