"""The Helm chart: rendered by the real engine, strict against Kubernetes' own schemas, with the names that the code really has.

KEDA's and the Prometheus operator's objects are checked for what this project decides in them; neither has been run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from docket import Docket
from helm_python.chart import Chart, lint

from service import metrics
from service.settings import Settings

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "infinite-talk"
KUBERNETES = ("1.33", "1.35", "1.37")
SERVERS = {"redis": {"address": "valkey.data.svc:6379"}, "s3": {"endpoint": "https://s3.example.com"}}
TRIAL = {"valkey": {"enabled": True}, "minio": {"enabled": True}}
CUSTOM = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1"}
POOL = {
    "engine": "infinitetalk", "jobClass": "batch", "image": "worker", "gpus": 2, "minReplicas": 1, "maxReplicas": 3,
    "jobsPerPod": 2, "gracePeriodSeconds": 90, "startupSeconds": 901, "priorityClassName": "high",
    "resources": {"requests": {"cpu": 4, "memory": "48Gi"}, "limits": {"memory": "96Gi"}}, "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}  # fmt: skip
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gpu example": yaml.safe_load((CHART / "examples" / "gpu.yaml").read_text()),
    "laptop example": yaml.safe_load((CHART / "examples" / "laptop.yaml").read_text()),
    "spot example": yaml.safe_load((CHART / "examples" / "spot.yaml").read_text()),
    "no keda": {"keda": {"enabled": False}},
    "no autoscaling": {"api": {"replicas": 3, "autoscaling": {"enabled": False}}},
    "no network policies": {"networkPolicies": {"enabled": False}},
    "redis without password": {"redis": {"address": "r:6379", "passwordKey": ""}},
    "redis with tls": {"redis": {"address": "r:6380", "tls": True}},
    "settings": {"settings": {"INFINITETALK_REDIS_PREFIX": "other", "INFINITETALK_MAX_ATTEMPTS": 5}},
    "gpu pool": {"pools": {"big": POOL}},
    "gpu pool with models": {"pools": {"big": POOL}, "modelCache": {"existingClaim": "models"}},
    "gpu pool with a claim made and filled": {
        "pools": {"big": POOL},
        "modelCache": {
            "claim": {"create": True, "storageClass": "shared"},
            "pull": {"enabled": True, "variants": ["base", "4-step"]},
        },
    },
    "gpu pool with models on each node": {
        "pools": {"big": POOL},
        "modelCache": {
            "nodePath": "/var/lib/models",
            "pull": {"variants": ["4-step"], "source": "s3://checkpoints", "tokenKey": "HF_TOKEN"},
        },
    },
    "servers for a trial": TRIAL,
    "tls everywhere": {
        "valkey": {"enabled": True, "tlsSecret": "v"},
        "minio": {"enabled": True, "tlsSecret": "m", "storageClass": "fast"},
        "tls": {"apiSecret": "a", "caConfigMap": "authorities"},
        "gateway": {"enabled": True, "name": "public"},
    },
    "no deletion cost": {"deletionCost": {"enabled": False}},
    "no admission policy": {"deletionCost": {"admissionPolicy": False}},
    "egress by address": {"networkPolicies": {"egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}]}},
    "pull secrets": {"imagePullSecrets": ["one", "two"]},
    "ingress": {"ingress": {"enabled": True, "host": "a.example.com"}},
    "ingress with tls": {"ingress": {"enabled": True, "className": "nginx", "host": "a.example.com", "tlsSecret": "t"}},
    "a job for each job": {"pools": {"big": {**POOL, "scaledJob": True}}, "keda": {"prometheusAddress": "http://p:9090"}},
    "gateway in the same namespace": {"gateway": {"enabled": True, "name": "public", "host": "a.example.com"}},
    "alert rules": {
        "prometheusRules": {
            "labels": {"a": "b"},
            "groups": [
                {
                    "name": "talk",
                    "rules": [{"alert": "Waiting", "expr": "infinitetalk_queue_oldest_wait_seconds > 600", "for": "5m"}],
                }
            ],
        }
    },
    "monitors and waits": {
        "monitors": {"enabled": True, "labels": {"a": "b"}},
        "keda": {"prometheusAddress": "http://p:9090"},
    },
}


def whole(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with servers of the operator's own where the chart brings none."""
    own = {part: given for (part, given), trial in zip(SERVERS.items(), TRIAL, strict=True) if not values.get(trial)}
    return own | values


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    with Chart.load(CHART) as chart:
        files = chart.render(whole(values), name="talk", namespace="media")
    return [document for text in files.values() for document in yaml.safe_load_all(text) if document]


ACCEPTED = {
    "CKV_K8S_21": "the namespace is the operator's choice at installation, and is not written into objects",
    "CKV_K8S_43": "images are the operator's own, by tag or digest as the operator likes",
    "CKV_K8S_15": "tags are never moved: pulling again at every start would only make scaling from zero slower",
    "CKV_K8S_11": "a CPU limit would throttle rendering on an idle node; requests share it fairly on a busy one",
}
"""Findings of the policy linter that stand, and why."""


RIGHT = {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}
"""All that anything of this chart may do to Kubernetes: workers, to their own pods."""


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in objects if document["kind"] == kind]


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [container for pod in pods(objects) for container in pod["containers"]]


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods of all Deployments, StatefulSets and Jobs."""
    kinds = ("Deployment", "StatefulSet", "Job")
    found = [document["spec"]["template"]["spec"] for kind in kinds for document in of_kind(objects, kind)]
    return found + [document["spec"]["jobTargetRef"]["template"]["spec"] for document in of_kind(objects, "ScaledJob")]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_is_strictly_valid(values: dict[str, Any]) -> None:
    objects = render(values)
    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"} <= {document["kind"] for document in objects}
    names = [(document["kind"], document["metadata"]["name"]) for document in objects]
    assert len(set(names)) == len(names)
    for document in objects:
        if document["apiVersion"] not in CUSTOM:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)
        elif document["kind"] == "ScaledJob":  # what KEDA makes of it
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": document["spec"]["jobTargetRef"]}
            for version in KUBERNETES:
                kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_chart_is_clean(values: dict[str, Any]) -> None:
    report = lint(CHART, whole(values), strict=True)
    assert not report["errors"]
    assert not [message for message in report["messages"] if message["severity"] > 1]


@pytest.mark.parametrize(
    "values",
    [
        {"nonsense": 1},
        {"settings": {"PORT": 1}},
        {"redis": {"address": "no-port"}},
        {"s3": {"endpoint": "s3.example.com"}},
        {"pools": {"Bad Name": POOL}},
        {"pools": {"big": {**POOL, "jobClass": "urgent"}}},
        {"pools": {"big": {**POOL, "gpus": -1}}},
        {"keda": {"pollingSeconds": 0}},
        {"modelCache": {"pull": {"variants": []}}},
        {"modelCache": {"nodePath": "models"}},
        {"valkey": {"enabled": True, "image": "valkey"}},
    ],
)
def test_nonsense_is_refused(values: dict[str, Any]) -> None:
    with Chart.load(CHART) as chart, pytest.raises(helm_python.HelmError):
        chart.validate_schema(values)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_variables_are_settings_and_ports_and_paths_are_the_codes(values: dict[str, Any]) -> None:
    known = {f"INFINITETALK_{name}".upper() for name in (*Settings.model_fields, "secrets_dir", "models")} | {"SSL_CERT_FILE"}
    for container in containers(render(values)):
        if container["name"] not in ("api", "worker"):
            continue
        given = {entry["name"]: entry["value"] for entry in container["env"]}
        assert set(given) <= known
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        variable = "INFINITETALK_METRICS_PORT" if container["name"] == "api" else "INFINITETALK_WORKER_PORT"
        assert str(ports["metrics"]) == given[variable]
        assert ports.get("http", Settings().port) == Settings().port
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            action = container[probe]["httpGet"]
            assert action["port"] == "metrics"
            assert action["path"] == ("/readyz" if probe == "readinessProbe" else "/livez")
        Settings(**{name.removeprefix("INFINITETALK_").lower(): value for name, value in given.items()
                    if name.startswith("INFINITETALK_") and not name.endswith(("_DIR", "_MODELS", "S3_ENDPOINT"))})  # fmt: skip


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_may_do_no_more_than_they_must(values: dict[str, Any]) -> None:
    objects = render(values)
    for pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert not container["image"].endswith(":latest")
    assert not [document for document in objects if document["kind"] in ("Secret", "ClusterRole")]
    rules = [rule for document in of_kind(objects, "Role") for rule in document["rules"]]
    assert rules == values.get("deletionCost", {}).get("enabled", True) * [RIGHT]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_keda_reads_what_the_service_writes(values: dict[str, Any]) -> None:
    objects = render(values)
    scaled = of_kind(objects, "ScaledObject")
    if not values.get("keda", {}).get("enabled", True):
        assert not scaled
        workers = [document for document in of_kind(objects, "Deployment") if document["metadata"]["name"] != "talk-api"]
        assert all("replicas" in document["spec"] for document in workers)
        return
    prefix = values.get("settings", {}).get("INFINITETALK_REDIS_PREFIX", Settings().redis_prefix)
    deployments = {document["metadata"]["name"]: document for document in of_kind(objects, "Deployment")}
    assert len(scaled) == len(deployments) - 1
    for document in scaled:
        worker = deployments[document["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in worker["spec"], "KEDA alone decides"
        require_triggers(document, worker["spec"]["template"]["spec"], prefix)
    for document in of_kind(objects, "ScaledJob"):
        pod = document["spec"]["jobTargetRef"]["template"]["spec"]
        require_triggers(document, pod, prefix)
        assert {"name": "INFINITETALK_WORKER_JOBS", "value": "1"} in pod["containers"][0]["env"], "the Job ends"


def require_triggers(document: dict[str, Any], pod: dict[str, Any], prefix: str) -> None:
    """The triggers read the stream and the metric of the engine and class that the pod works for."""
    env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    engine, job_class = env["INFINITETALK_ENGINES"], env["INFINITETALK_WORKER_CLASSES"]
    stream, *others = document["spec"]["triggers"]
    # As service.queue names its dockets.
    assert stream["metadata"]["stream"] == Docket(name=f"{prefix}-{engine}-{job_class}", url="memory://").stream_key
    assert all(isinstance(value, str) for trigger in (stream, *others) for value in trigger["metadata"].values())
    for other in others:
        (metric,) = re.findall(r"infinitetalk_\w+", other["metadata"]["query"])
        (family,) = metrics.QUEUE_OLDEST_WAIT.collect()
        assert metric == family.name
        assert f'engine="{engine}",job_class="{job_class}"' in other["metadata"]["query"]


def test_jobs_without_keda_are_refused() -> None:
    with pytest.raises(helm_python.HelmError, match="scaledJob needs KEDA"):
        render({"pools": {"big": {**POOL, "scaledJob": True}}, "keda": {"enabled": False}})


def test_gpus_and_models_come_where_they_are_asked_for() -> None:
    (worker,) = [item for item in containers(render(VALUES["gpu pool with models"])) if "-worker:" in item["image"]]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in worker["volumeMounts"]
    assert worker["startupProbe"]["periodSeconds"] * worker["startupProbe"]["failureThreshold"] >= 901
    (worker,) = [item for item in containers(render({})) if item["name"] == "worker"]
    assert "nvidia.com/gpu" not in worker["resources"]["limits"]


def test_servers_are_named_or_brought_along() -> None:
    with Chart.load(CHART) as chart:
        for missing, values in (("redis.address", {"minio": {"enabled": True}}), ("s3.endpoint", {"valkey": {"enabled": True}})):
            with pytest.raises(helm_python.HelmError, match=f"{missing}: .*for a trial"):
                chart.render(values, name="talk", namespace="media")
    with pytest.raises(helm_python.HelmError, match=r"valkey\.enabled: set redis\.passwordKey"):
        render({"valkey": {"enabled": True}, "redis": {"passwordKey": ""}})
    objects = render(TRIAL)
    services = {item["metadata"]["name"]: item["spec"]["ports"][0]["port"] for item in of_kind(objects, "Service")}
    (scaled,) = of_kind(objects, "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metadata"]["address"] == f"talk-valkey.media.svc:{services['talk-valkey']}"
    endpoints = {entry["value"] for item in containers(objects) for entry in item.get("env", []) if "ENDPOINT" in entry["name"]}
    assert endpoints == {f"http://talk-minio.media.svc:{services['talk-minio']}"}
    for item in of_kind(objects, "StatefulSet"):
        (secret,) = [volume["secret"] for volume in item["spec"]["template"]["spec"]["volumes"] if "secret" in volume]
        assert secret["secretName"] == "infinite-talk"


def test_keda_and_processes_agree_on_tls() -> None:
    objects = render(VALUES["tls everywhere"])
    (scaled,) = of_kind(objects, "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metadata"]["enableTLS"] == "true"
    (authentication,) = of_kind(objects, "TriggerAuthentication")
    assert authentication["spec"]["configMapTargetRef"] == [{"parameter": "ca", "name": "authorities", "key": "ca.crt"}]
    for pod in pods(objects):
        for item in pod["containers"]:
            for entry in item.get("env", []):
                if entry["name"] == "INFINITETALK_S3_ENDPOINT":
                    assert entry["value"].startswith("https://")
                if entry["name"] == "SSL_CERT_FILE":
                    assert {"name": "ca", "mountPath": "/ca", "readOnly": True} in item["volumeMounts"]
    (service,) = [item for item in of_kind(objects, "Service") if item["metadata"]["name"] == "talk-api"]
    (route,) = of_kind(objects, "HTTPRoute")
    assert route["spec"]["rules"][0]["backendRefs"][0]["port"] == service["spec"]["ports"][0]["port"] == 443


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_name_that_is_referred_to_is_there(values: dict[str, Any]) -> None:
    """Volumes that are mounted, accounts, ports of Services and monitors, claims that the chart makes."""
    objects = render(values)
    accounts = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    for pod in pods(objects):
        assert pod["serviceAccountName"] in accounts
        names = [volume["name"] for volume in pod.get("volumes", [])]
        assert len(names) == len(set(names))
        for item in pod["containers"] + pod.get("initContainers", []):
            assert {mount["name"] for mount in item["volumeMounts"]} <= {*names, "data"}
    templates = [item["spec"]["template"] for kind in ("Deployment", "StatefulSet") for item in of_kind(objects, kind)]
    for service in of_kind(objects, "Service"):
        (pod,) = [item for item in templates if service["spec"]["selector"].items() <= item["metadata"]["labels"].items()]
        ports = {port["name"] for item in pod["spec"]["containers"] for port in item["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [item for item in of_kind(objects, "Service") if wanted <= item["metadata"]["labels"].items()]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for monitor in of_kind(objects, "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [item for item in templates if wanted <= item["metadata"]["labels"].items()]
        assert len(found) == len(of_kind(objects, "ScaledObject")), "every worker, and only these"


def test_egress_is_denied_but_for_what_is_needed() -> None:
    def rules(values: dict[str, Any]) -> list[dict[str, Any]]:
        (policy,) = [item for item in of_kind(render(values), "NetworkPolicy") if item["metadata"]["name"] == "talk"]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        found: list[dict[str, Any]] = policy["spec"]["egress"]
        return found

    names, needed = rules({"redis": {"address": "r:6380"}, "s3": {"endpoint": "http://s3.data.svc:9000"}})
    assert {port["port"] for port in names["ports"]} == {53}
    assert {port["port"] for port in needed["ports"]} == {6380, 9000, 443}
    blocks = [peer["ipBlock"]["except"] for peer in needed["to"] if "ipBlock" in peer]
    assert blocks == [["169.254.0.0/16"], ["fe80::/10"]], "no cloud's metadata"
    _, own = rules(VALUES["egress by address"])
    assert own == VALUES["egress by address"]["networkPolicies"]["egress"][0]


def test_models_are_pulled_into_the_claim_that_workers_read() -> None:
    objects = render(VALUES["gpu pool with a claim made and filled"])
    (claim,), (job,) = of_kind(objects, "PersistentVolumeClaim"), of_kind(objects, "Job")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    pod = job["spec"]["template"]["spec"]
    variants = [item["command"][item["command"].index("--variant") + 1] for item in pod["initContainers"] + pod["containers"]]
    assert variants == ["base", "4-step"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(objects)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {claim["metadata"]["name"]}
    with pytest.raises(helm_python.HelmError, match="there is nothing to fill"):
        render({"pools": {"big": POOL}, "modelCache": {"pull": {"enabled": True}}})


def test_the_policy_linter_finds_nothing_else(tmp_path: Path) -> None:
    for name, values in VALUES.items():
        (tmp_path / f"{name.replace(' ', '-')}.yaml").write_text(yaml.safe_dump_all(render(values)))
    # As a module: its script does not start from a folder with a space in its name.
    python = Path(sys.executable).parent.parent / "policy" / "bin" / "python"
    command = [
        str(python),
        "-m",
        "checkov.main",
        "-d",
        str(tmp_path),
        "--framework",
        "kubernetes",
        "--skip-download",
        "--compact",
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--skip-check", ",".join(ACCEPTED), "-o", "json"], capture_output=True, text=True, timeout=240, check=False
    )
    report = json.loads(done.stdout)
    found = [(check["check_id"], check["resource"]) for check in report["results"]["failed_checks"]]
    assert not found
    assert report["summary"]["passed"] > 100
