"""The Kubernetes base: valid against the API's schema, and consistent within itself."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.settings import unknown_variables
from tests.deploy.conftest import DEPLOY, manifests

KUBERNETES = DEPLOY / "kubernetes"
VERSIONS = ("1.30", "1.33")
ITEMS = manifests()


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in ITEMS if item["kind"] in kinds}


WORKLOADS = of_kind("Deployment", "StatefulSet", "Job")


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


def port_names(labels: dict[str, str]) -> dict[str, int]:
    """Named ports of the pods that carry ``labels``."""
    return {
        port["name"]: port["containerPort"]
        for workload in WORKLOADS.values()
        if labels.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        for container in containers(workload)
        for port in container.get("ports", [])
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_object_matches_the_schema_of_kubernetes(item: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(item, version, strict=True)


def test_a_wrong_object_does_not_match() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prts": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kustomizations_list_every_file_and_no_other() -> None:
    for folder, besides in (
        (KUBERNETES / "base", set()),
        (KUBERNETES / "monitoring", {"prometheus-adapter-values.yaml"}),
    ):
        listed = set(yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"])
        there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"} - besides
        assert listed == there


def test_no_secret_is_committed() -> None:
    assert not of_kind("Secret")
    for name, workload in WORKLOADS.items():
        for container in containers(workload):
            for variable in container.get("env", []):
                if variable["name"].endswith(("DATABASE_URL", "REDIS_URL", "KEY", "PASSWORD", "TOKEN")):
                    assert "secretKeyRef" in variable["valueFrom"], name


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_pods_meet_the_restricted_standard(name: str) -> None:
    spec = pod(WORKLOADS[name])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(WORKLOADS[name]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {"models-build"}))
def test_servers_have_probes_on_ports_that_they_name(name: str) -> None:
    for container in containers(WORKLOADS[name]):
        ports = {port["name"] for port in container["ports"]}
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


def test_selectors_select_their_own_pods() -> None:
    for name, workload in of_kind("Deployment", "StatefulSet").items():
        wanted = workload["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= workload["spec"]["template"]["metadata"]["labels"].items(), name


def test_services_select_pods_that_have_their_ports() -> None:
    for name, service in of_kind("Service").items():
        ports = port_names(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], name


def test_stateful_sets_have_their_headless_service() -> None:
    services = of_kind("Service")
    for name, workload in of_kind("StatefulSet").items():
        assert services[workload["spec"]["serviceName"]]["spec"]["clusterIP"] == "None", name


def test_volumes_that_are_mounted_exist() -> None:
    claims = of_kind("PersistentVolumeClaim")
    for name, workload in WORKLOADS.items():
        there = {volume["name"] for volume in pod(workload)["volumes"]}
        there |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in containers(workload):
            assert {mount["name"] for mount in container["volumeMounts"]} <= there, name
        for volume in pod(workload)["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_models_are_read_only_where_they_are_served() -> None:
    for name in ("triton", "gateway"):
        (mount,) = [m for m in containers(WORKLOADS[name])[0]["volumeMounts"] if m["name"] == "models"]
        assert mount["readOnly"] is True


def test_autoscalers_and_budgets_point_at_something() -> None:
    for scaler in of_kind("HorizontalPodAutoscaler").values():
        target = scaler["spec"]["scaleTargetRef"]
        assert WORKLOADS[target["name"]]["kind"] == target["kind"]
        assert "replicas" not in WORKLOADS[target["name"]]["spec"], "the autoscaler owns the number"
    for budget in of_kind("PodDisruptionBudget").values():
        assert port_names(budget["spec"]["selector"]["matchLabels"])
    assert set(of_kind("HorizontalPodAutoscaler")) == set(of_kind("PodDisruptionBudget")) == {"gateway", "triton"}


def test_triton_scales_on_its_queue_by_a_metric_that_the_adapter_offers() -> None:
    (metric,) = of_kind("HorizontalPodAutoscaler")["triton"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    values = yaml.safe_load((KUBERNETES / "monitoring" / "prometheus-adapter-values.yaml").read_text(encoding="utf-8"))
    assert (
        [rule["name"]["as"] for rule in values["rules"]["custom"]] == [name] == ["nv_inference_pending_request_count"]
    )


def environment(name: str) -> dict[str, Any]:
    return {item["name"]: item.get("value", "") for item in containers(WORKLOADS[name])[0]["env"]}


def test_the_gateway_knows_every_triton_that_there_can_be() -> None:
    most = of_kind("HorizontalPodAutoscaler")["triton"]["spec"]["maxReplicas"]
    urls = environment("gateway")["TIDEGATE_TRITON_URLS"].split(",")
    assert urls == [f"triton-{number}.triton:8001/8000" for number in range(most)]


def test_settings_are_settings() -> None:
    assert unknown_variables(environment("gateway")) == []


def test_termination_outlasts_the_drain() -> None:
    given = environment("gateway")
    grace = pod(WORKLOADS["gateway"])["terminationGracePeriodSeconds"]
    assert grace > float(given["TIDEGATE_SHUTDOWN_DELAY_S"]) + float(given["TIDEGATE_DRAIN_S"])


def test_only_the_gateway_reaches_triton() -> None:
    policies = of_kind("NetworkPolicy")
    assert policies["deny-ingress"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    triton = policies["triton"]["spec"]
    assert triton["egress"] == []
    inference, metrics = triton["ingress"]
    assert inference == {
        "from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}],
        "ports": [{"port": "http", "protocol": "TCP"}, {"port": "grpc", "protocol": "TCP"}],
    }
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]
    assert all("namespaceSelector" in source for source in metrics["from"])


def test_policies_name_ports_that_their_pods_have() -> None:
    for name, policy in of_kind("NetworkPolicy").items():
        ports = port_names(policy["spec"]["podSelector"].get("matchLabels", {}))
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert port["port"] in ports, name


def test_triton_is_the_same_image_and_command_as_in_compose(compose: dict[str, Any]) -> None:
    (container,) = containers(WORKLOADS["triton"])
    assert container["image"] == compose["services"]["triton"]["image"]
    assert set(container["command"]) <= set(compose["services"]["triton"]["command"])


def test_images_of_ours_get_their_tag_in_one_place() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text(encoding="utf-8"))
    tagged = {image["name"] for image in kustomization["images"]}
    used = {container["image"] for workload in WORKLOADS.values() for container in containers(workload)}
    assert {image for image in used if ":" not in image} == tagged
