"""What workers may ask of Kubernetes: the chart's admission policy, its expressions evaluated as an API server would."""

from __future__ import annotations

import copy
from typing import Any

import cel
import pytest

from service.deletion_cost import ANNOTATION
from tests.deploy.test_chart import RIGHT, of_kind, render

POD: dict[str, Any] = {
    "metadata": {
        "name": "talk-a-1",
        "labels": {"app.kubernetes.io/name": "infinite-talk"},
        "annotations": {"kept": "as it is"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "talk-a"}],
    },
    "spec": {"containers": [{"name": "worker", "image": "ours:1"}]},
}
WORKER = {
    "username": "system:serviceaccount:media:talk-worker",
    "extra": {"authentication.kubernetes.io/pod-name": ["talk-a-1"]},
}


def allowed(changed: dict[str, Any], before: dict[str, Any] = POD, user: dict[str, Any] = WORKER) -> bool:
    """Whether the policy lets this change of a pod pass."""
    (policy,) = of_kind(render({}), "ValidatingAdmissionPolicy")
    seen = {"object": changed, "oldObject": before, "request": {"userInfo": user}}
    spec = policy["spec"]
    if not all(cel.evaluate(condition["expression"], seen) for condition in spec["matchConditions"]):
        return True
    try:
        return all(cel.evaluate(validation["expression"], seen) for validation in spec["validations"])
    except RuntimeError:  # a field that is not there; failurePolicy says what then
        return bool(spec["failurePolicy"] != "Fail")


def changed(*path: Any, to: Any, of: dict[str, Any] = POD) -> dict[str, Any]:
    pod = copy.deepcopy(of)
    place = pod
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return pod


COSTLY = changed("metadata", "annotations", ANNOTATION, to="100")


def test_a_worker_sets_its_own_deletion_cost() -> None:
    assert allowed(COSTLY)
    assert allowed(changed("metadata", "annotations", ANNOTATION, to="0", of=COSTLY), before=COSTLY)
    bare = copy.deepcopy(POD)
    del bare["metadata"]["annotations"]
    assert allowed(changed("metadata", "annotations", to={ANNOTATION: "100"}), before=bare)


@pytest.mark.parametrize(
    "change",
    [
        changed("spec", "containers", 0, "image", to="theirs:1"),
        changed("metadata", "annotations", "other", to="new"),
        changed("metadata", "annotations", "kept", to="changed"),
        changed("metadata", "annotations", to={ANNOTATION: "100"}),
        changed("metadata", "labels", to={}),
        changed("metadata", "ownerReferences", to=[]),
        changed("metadata", "finalizers", to=["stay"]),
    ],
)
def test_and_nothing_else(change: dict[str, Any]) -> None:
    assert not allowed(change)


def test_nor_anything_of_another_pod() -> None:
    another = changed("metadata", "name", to="talk-a-2")
    assert not allowed(changed("metadata", "annotations", ANNOTATION, to="-1", of=another), before=another)
    assert not allowed(COSTLY, user={**WORKER, "extra": {}})
    assert allowed(changed("spec", "priority", to=1), user={"username": "system:kube-scheduler", "extra": {}}), (
        "others are not meant"
    )


def test_the_right_is_bound_to_workers_alone() -> None:
    objects = render({})
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    assert role["rules"] == [RIGHT]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == ["talk-worker"]
    accounts = {item["metadata"]["name"]: item["spec"]["template"]["spec"] for item in of_kind(objects, "Deployment")}
    assert {name: pod["serviceAccountName"] for name, pod in accounts.items()} == {
        "talk-api": "talk",
        "talk-portrait-interactive": "talk-worker",
    }
    (policy,), (bound,) = of_kind(objects, "ValidatingAdmissionPolicy"), of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert bound["spec"]["policyName"] == policy["metadata"]["name"]
    assert bound["spec"]["validationActions"] == ["Deny"]
