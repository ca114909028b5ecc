"""The manifests for Kubernetes: valid for three of its versions, and in agreement with themselves and the server."""

import ast
import re
import subprocess
import sys
import urllib.request

import grpc
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator
from conftest import ROOT
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digits_server.__main__ import main
from digits_server.rpc.grpcio import FLUSH_S

VERSIONS = ["1.35", "1.36", "1.37"]
OVERLAYS = ["dev", "prod", "models-image", "models-volume"]
CORE = ("v1", "apps/", "autoscaling/", "policy/", "networking.k8s.io/")
NAME = "app.kubernetes.io/name"
SNAKE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def of_kind(manifests, *kinds):
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests):
    """Return the pods of all deployments, by the label that names them."""
    templates = [deployment["spec"]["template"] for deployment in of_kind(manifests, "Deployment")]
    return {template["metadata"]["labels"][NAME]: template["spec"] for template in templates}


def ports(pod):
    """Return the ports of a pod's one container: names and numbers alike."""
    found = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    return found | {number: number for number in found.values()}


def probes(container):
    return [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe in container]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid(rendered, overlay, version):
    """Each object of Kubernetes' own kinds passes the version's schema, which allows no field that it does not know."""
    core = [manifest for manifest in rendered(overlay) if manifest["apiVersion"].startswith(CORE)]
    assert len(core) >= 9
    for manifest in core:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_validation_is_strict(rendered):
    """A misspelt field would be found."""
    deployment = yaml.safe_load(yaml.safe_dump(of_kind(rendered("dev"), "Deployment")[0]))
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_what_they_mean(rendered, overlay):
    """Services, budgets, policies and the autoscaler name pods that exist, and ports that these have."""
    manifests = rendered(overlay)
    found = pods(manifests)
    for manifest in of_kind(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = manifest["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        pod = found[selector.get("matchLabels", selector)[NAME]]
        named = [port["targetPort"] for port in spec.get("ports", [])]
        named += [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
        assert set(named) <= set(ports(pod))
    deployments = {deployment["metadata"]["name"] for deployment in of_kind(manifests, "Deployment")}
    for autoscaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        assert autoscaler["spec"]["scaleTargetRef"]["name"] in deployments


def test_envoy_knows_the_servers_name(rendered):
    """Envoy resolves the headless service, and the service for clients leads to Envoy."""
    manifests = rendered("prod")
    config = yaml.safe_load(of_kind(manifests, "ConfigMap")[0]["data"]["envoy.yaml"])
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(manifests, "Service")}
    endpoint = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    hosts = services[endpoint["endpoint"]["address"]["socket_address"]["address"]]
    assert (hosts["clusterIP"], hosts["selector"][NAME]) == ("None", "digits-server")
    assert services["digits-server"]["selector"][NAME] == "digits-envoy"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_envoy_is_the_one_that_is_tried(rendered, overlay):
    """It is of the version that docker-compose.yml has, where the servers have the same name."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    name, version = compose["envoy"]["image"].split(":")
    assert pods(rendered(overlay))["digits-envoy"]["containers"][0]["image"] == f"{name}:distroless-{version}"
    assert compose["server"]["networks"]["default"]["aliases"] == ["digits-server-hosts"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(rendered, overlay):
    """No pod runs as root, gains rights, writes to its image, holds a token, or is told of services by variables."""
    for pod in pods(rendered(overlay)).values():
        container = pod["containers"][0]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (container["allowPrivilegeEscalation"], container["readOnlyRootFilesystem"]) == (False, True)
        assert container["capabilities"] == {"drop": ["ALL"]}
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)


def servers(rendered):
    """Return the server's container and its pod's grace, from the overlays and from KServe's runtime."""
    runtime, service = rendered("kserve")
    found = [pods(rendered(overlay))["digits-server"] for overlay in OVERLAYS]
    found.append(service["spec"]["predictor"] | {"containers": runtime["spec"]["containers"]})
    return [(pod["containers"][0], pod["terminationGracePeriodSeconds"]) for pod in found]


def test_pods_outlast_their_drain(rendered):
    """Between the word that a pod ends and the kill lies the pause, the whole drain, and a little more."""
    for container, allowed_s in servers(rendered):
        grace_s = next(float(arg.partition("=")[2]) for arg in container["args"] if arg.startswith("--grace-s="))
        pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause_s + grace_s + 2 * FLUSH_S < allowed_s


def test_arguments_are_the_servers(rendered):
    """Each argument is a setting that `digits-server` knows."""
    flags = {flag for parameter in main.params for flag in parameter.opts}
    for container, _ in servers(rendered):
        assert {arg.partition("=")[0] for arg in container["args"]} <= flags


def test_probes_ask_what_the_server_answers(rendered, server):
    """A real server says yes to each probe, gRPC's and HTTP's."""
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for container, _ in servers(rendered):
            numbers = {port["containerPort"] for port in container["ports"]} | {9464}
            for probe in probes(container):
                if asked := probe.get("grpc"):
                    assert asked["port"] == 50051
                    answer = check(health_pb2.HealthCheckRequest(service=asked["service"]), timeout=20)
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
                else:
                    assert ports({"containers": [container]}).get(probe["httpGet"]["port"], 9464) in numbers
                    with urllib.request.urlopen(server.metrics_url + probe["httpGet"]["path"], timeout=20) as page:
                        assert page.status == 200


def adapter_rules(rendered):
    config = next(it for it in of_kind(rendered("prod"), "ConfigMap") if "config.yaml" in it["data"])
    return yaml.safe_load(config["data"]["config.yaml"])["rules"]


def test_autoscaler_asks_for_metrics_that_exist(rendered, server):
    """What the autoscaler goes by, the adapter offers; and what that asks of Prometheus, the server exports."""
    rules = adapter_rules(rendered)
    metrics = of_kind(rendered("prod"), "HorizontalPodAutoscaler")[0]["spec"]["metrics"]
    wanted = {metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"}
    assert wanted == {rule["name"]["as"] for rule in rules}
    with urllib.request.urlopen(server.metrics_url + "/metrics", timeout=20) as page:
        text = page.read().decode()
    for rule in rules:
        assert f"\n# TYPE {re.split('{|_bucket', rule['seriesQuery'])[0]} " in text


def test_adapter_asks_in_promql(rendered, tmp_path):
    """Filled in as the adapter does it, its queries are ones that Prometheus takes."""
    queries = [
        rule["metricsQuery"]
        .replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        .replace("<<.LabelMatchers>>", 'namespace="digits",pod=~"a|b"')
        .replace("<<.GroupBy>>", "pod")
        for rule in adapter_rules(rendered)
    ]
    rules = [{"record": f"x:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    try:
        done = subprocess.run(
            ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no promtool (Debian: apt-get install prometheus)")
    assert done.returncode == 0, done.stderr


class Schemas:
    """The kinds of KServe, as its own Python package describes them: names and types of all fields."""

    def __init__(self, folder):
        self._folder = folder

    def check(self, value, kind, path):
        """Fail at a field that a kind does not have, or at one that is of another type."""
        if kind.startswith("list["):
            for number, item in enumerate(value):
                self.check(item, kind[5:-1], f"{path}[{number}]")
        elif kind in {"str", "int", "bool"}:
            assert type(value).__name__ == kind, path
        elif (file := self._folder / f"{SNAKE.sub('_', kind).lower()}.py").exists():  # others are Kubernetes' own
            types, names = self._fields(file)
            for name, item in value.items():
                assert name in names, f"{path}.{name}"
                self.check(item, types[names[name]], f"{path}.{name}")

    @staticmethod
    def _fields(file):
        """Return the types of a class, by attribute, and the attributes, by field."""
        body = next(node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)).body
        constants = {node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign)}
        types, fields = (ast.literal_eval(constants[name]) for name in ("openapi_types", "attribute_map"))
        return types, {field: attribute for attribute, field in fields.items()}


@pytest.fixture(scope="module")
def kserve(tmp_path_factory):
    """The kinds of KServe, read from its package; what that depends on, a gigabyte, is not needed for it."""
    folder = tmp_path_factory.mktemp("kserve")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "kserve==0.21.0"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"kserve can't be installed: {done.stderr[-200:]}")
    return Schemas(folder / "kserve/models")


def test_kserve_objects_are_valid(rendered, kserve):
    """KServe knows each field of the runtime and of the inference service, and they name each other."""
    for manifest, kind in zip(rendered("kserve"), ("V1alpha1ServingRuntime", "V1beta1InferenceService"), strict=True):
        kserve.check(manifest, kind, manifest["kind"])
    runtime, service = rendered("kserve")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] == {
        key: runtime["spec"]["supportedModelFormats"][0][key] for key in ("name", "version")
    }
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    with pytest.raises(AssertionError, match=r"spec\.multimodel"):
        kserve.check({"spec": {"multimodel": True}}, "V1alpha1ServingRuntime", "")


@pytest.mark.parametrize("version", VERSIONS)
def test_kserve_container_is_valid(rendered, version):
    """The container in the runtime is one that Kubernetes takes in a pod."""
    container = rendered("kserve")[0]["spec"]["containers"][0]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
    kubernetes_validate.validate(pod, version, strict=True)


def test_monitoring_is_valid(rendered):
    """Prometheus' operator knows each field of the monitor, which finds the headless service, and of the rules."""
    found = of_kind(rendered("prod"), "ServiceMonitor", "PrometheusRule")
    for manifest in found:
        read = getattr(operator, manifest["kind"]).model_validate(manifest)
        assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
    spec = of_kind(found, "ServiceMonitor")[0]["spec"]
    hosts = next(it for it in of_kind(rendered("prod"), "Service") if it["metadata"]["name"] == "digits-server-hosts")
    assert spec["selector"]["matchLabels"].items() <= hosts["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in spec["endpoints"]} <= {port["name"] for port in hosts["spec"]["ports"]}


def test_rules_are_those_of_prometheus(rendered):
    """The rules are those of deploy/prometheus (after a change, run deploy/kubernetes/rules.sh), and find their job."""
    rule, monitor = (of_kind(rendered("prod"), kind)[0] for kind in ("PrometheusRule", "ServiceMonitor"))
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/rules/digits.yml").read_text())
    hosts = next(it for it in of_kind(rendered("prod"), "Service") if it["metadata"]["name"] == "digits-server-hosts")
    job = hosts["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert set(re.findall(r'job="([^"]*)"', str(rule["spec"]))) == {job}
