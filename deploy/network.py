"""The network: subnets without a way out, endpoints to AWS instead of NAT, names, and who may talk to whom."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_servicediscovery as servicediscovery
from constructs import Construct

from deploy.settings import DeploySettings

PORTS: Final = {"ingest": 50052, "dispatch": 50053, "scorer": 50051, "gateway": 50054}
TELEMETRY_PORT: Final = 4317
"""OTLP/gRPC of the collector beside each service; the Lambda, which has none, uses the dispatcher's."""

CACHE_PORT: Final = 9111
"""DAX with TLS: what its client takes for `daxs://` when the endpoint names no port."""

CALLS: Final = (
    ("lambda", "scorer"),
    ("lambda", "gateway"),
    ("dispatch", "scorer"),
    ("dispatch", "gateway"),
    ("dispatch", "ingest"),
    ("scorer", "gateway"),
)
"""Who calls whom; docs/ARCHITECTURE.md draws it."""

OPERATOR: Final = "operator"
"""The group of whoever runs `tapewatch` or publishes quotes in the VPC: docs/operations.md says how."""

INTERFACE_ENDPOINTS: Final = {
    "sqs": ec2.InterfaceVpcEndpointAwsService.SQS,
    "ecr.api": ec2.InterfaceVpcEndpointAwsService.ECR,
    "ecr.dkr": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "secretsmanager": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
    "xray": ec2.InterfaceVpcEndpointAwsService.XRAY,
    "ecs": ec2.InterfaceVpcEndpointAwsService.ECS,
}


@dataclass(frozen=True, slots=True)
class Groups:
    """A security group for each service, the Lambdas and operators, and one for DAX."""

    by_service: dict[str, ec2.SecurityGroup]
    cache: ec2.SecurityGroup

    def __getitem__(self, service: str) -> ec2.SecurityGroup:
        return self.by_service[service]


class NetworkStack(Stack):
    """VPC, endpoints, Cloud Map namespace and security groups."""

    def __init__(self, scope: Construct, construct_id: str, settings: DeploySettings, **given: Any) -> None:
        super().__init__(scope, construct_id, description="Tapewatch: network, names and security groups", **given)
        self.vpc = self._vpc(settings)
        self.subnets = ec2.SubnetSelection(subnet_group_name="mesh")
        self._endpoints(settings)
        self.namespace = servicediscovery.PrivateDnsNamespace(
            self, "Names", name=settings.network.namespace, vpc=self.vpc, description="The mesh's services"
        )
        self.groups = self._groups()
        self._tell_operators()

    def _vpc(self, settings: DeploySettings) -> ec2.Vpc:
        nat = settings.network.nat_gateways
        kind = ec2.SubnetType.PRIVATE_WITH_EGRESS if nat else ec2.SubnetType.PRIVATE_ISOLATED
        subnets = [ec2.SubnetConfiguration(name="mesh", subnet_type=kind, cidr_mask=20)]
        if nat:
            subnets.append(ec2.SubnetConfiguration(name="out", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24))
        vpc = ec2.Vpc(
            self,
            "Network",
            ip_addresses=ec2.IpAddresses.cidr(settings.network.cidr),
            availability_zones=list(settings.availability_zones),
            nat_gateways=nat,
            subnet_configuration=subnets,
            restrict_default_security_group=False,  # it would need a custom resource; nothing uses that group
        )
        flows = logs.LogGroup(
            self,
            "Flows",
            retention=logs.RetentionDays.TWO_WEEKS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        writer = iam.Role(self, "FlowWriter", assumed_by=iam.ServicePrincipal("vpc-flow-logs.amazonaws.com"))
        vpc.add_flow_log(
            "FlowLog",
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(flows, writer),
            traffic_type=ec2.FlowLogTrafficType.REJECT,
        )
        return vpc

    def _endpoints(self, settings: DeploySettings) -> None:
        for name, service in (
            ("S3", ec2.GatewayVpcEndpointAwsService.S3),
            ("DynamoDb", ec2.GatewayVpcEndpointAwsService.DYNAMODB),
        ):
            self.vpc.add_gateway_endpoint(name, service=service)
        if settings.network.nat_gateways:
            return  # what is paid for anyway reaches the rest of AWS as well
        self.endpoint_group = ec2.SecurityGroup(
            self, "EndpointGroup", vpc=self.vpc, allow_all_outbound=False, description="Interfaces of AWS"
        )
        self.endpoint_group.add_ingress_rule(
            ec2.Peer.ipv4(settings.network.cidr), ec2.Port.tcp(443), "HTTPS from the mesh"
        )
        for name, service in INTERFACE_ENDPOINTS.items():
            if name == "ecs" and settings.dispatch.mode == "warm":
                continue  # only RunTask needs it
            self.vpc.add_interface_endpoint(
                "".join(part.capitalize() for part in name.split(".")),
                service=service,
                subnets=self.subnets,
                security_groups=[self.endpoint_group],
                private_dns_enabled=True,
                open=False,
            )

    def _groups(self) -> Groups:
        made = {
            name: ec2.SecurityGroup(
                self,
                f"{name.capitalize()}Group",
                vpc=self.vpc,
                description=f"Tapewatch {name}",
                allow_all_outbound=True,  # without NAT, outbound ends at the endpoints and at the other groups
            )
            for name in (*PORTS, "lambda")
        }
        for caller, callee in CALLS:
            made[callee].add_ingress_rule(made[caller], ec2.Port.tcp(PORTS[callee]), f"{caller} calls {callee}")
        made["dispatch"].add_ingress_rule(made["lambda"], ec2.Port.tcp(TELEMETRY_PORT), "telemetry of the Lambda")
        made[OPERATOR] = self._operator(made)
        cache = ec2.SecurityGroup(self, "CacheGroup", vpc=self.vpc, description="DAX", allow_all_outbound=False)
        cache.add_ingress_rule(made["gateway"], ec2.Port.tcp(CACHE_PORT), "the gateway reads detections")
        return Groups(made, cache)

    def _operator(self, services: Mapping[str, ec2.SecurityGroup]) -> ec2.SecurityGroup:
        """May call every service, and fetch its image and secrets; nobody may call it."""
        made = ec2.SecurityGroup(
            self, "OperatorGroup", vpc=self.vpc, allow_all_outbound=False, description="Tapewatch operators, producers"
        )
        made.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS: image, secrets, log")
        for callee, number in PORTS.items():
            port = ec2.Port.tcp(number)
            made.add_egress_rule(services[callee], port, f"operators call {callee}")
            services[callee].add_ingress_rule(made, port, f"operators call {callee}")
        return made

    def _tell_operators(self) -> None:
        """What `aws ecs run-task` is given."""
        CfnOutput(self, "OperatorGroupId", value=self.groups[OPERATOR].security_group_id)
        CfnOutput(self, "MeshSubnetIds", value=",".join(self.vpc.select_subnets(subnet_group_name="mesh").subnet_ids))
