"""Ray's objects and those around them, against Kubernetes' schemas and KubeRay's fields.

Nothing is started here. kubernetes-validate carries the schemas.
"""

import jsonschema
import kubernetes_validate
import pytest

from deployed import KUBERAY, documents, pod_templates, rays, start_params
from kuberay import RAY_CLUSTER, RAY_JOB

KUBERNETES = "1.37"
CORE = ["keep", "network-policy", "pdb", "secret.example", "service-account"]
TEMPLATES = [(name, part) for name, thing in rays().items() for part in pod_templates(thing)]


@pytest.mark.parametrize("name", CORE)
def test_kubernetes__core_objects_fit_their_schemas(name):
    for thing in documents(KUBERAY / f"{name}.yaml"):
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "part"), TEMPLATES)
def test_kubernetes__pods_of_ray_fit_their_schema(name, part):
    template = pod_templates(rays()[name])[part]
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", **template}, KUBERNETES, strict=True
    )


@pytest.mark.parametrize(
    ("name", "schema"), [("raycluster", RAY_CLUSTER), ("rayjob", RAY_JOB)], ids=["cluster", "job"]
)
def test_kuberay__has_only_fields_that_kuberay_knows(name, schema):
    jsonschema.validate(rays()[name], schema)


def test_kuberay__job_and_cluster_have_the_same_pods():
    cluster, job = (pod_templates(thing) for thing in rays().values())
    (container,), volumes = job["head"]["spec"]["containers"], job["head"]["spec"]["volumes"]
    study = [each for each in (*container["volumeMounts"], *volumes) if each["name"] == "study"]
    assert len(study) == 2
    container["volumeMounts"].remove(study[0])
    volumes.remove(study[1])
    assert {"head": job["head"], "spot": job["spot"]} == cluster
    params = [start_params(thing) for thing in rays().values()]
    assert params[0] == params[1]


@pytest.mark.parametrize(("name", "part"), TEMPLATES)
def test_kuberay__pods_are_closed(name, part):
    spec = pod_templates(rays()[name])[part]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if part != "submitter":
        assert container["readinessProbe"]
        assert container["livenessProbe"]
    assert spec["nodeSelector"] == {"node-pool": "spot" if part == "spot" else "stable"}
    assert ("tolerations" in spec) == (part == "spot")


def test_kuberay__budget_and_policies_select_the_pods():
    labels = {
        part: template["metadata"]["labels"]
        for part, template in pod_templates(rays()["rayjob"]).items()
    }
    (budget,) = documents(KUBERAY / "pdb.yaml")
    assert budget["spec"]["selector"]["matchLabels"] == labels["head"]
    everything, head = documents(KUBERAY / "network-policy.yaml")
    selected = everything["spec"]["podSelector"]["matchLabels"].items()
    assert all(selected <= each.items() for each in labels.values())
    assert head["spec"]["podSelector"]["matchLabels"] == labels["head"]
    allowed = [peer.get("podSelector") for peer in head["spec"]["ingress"][0]["from"]]
    assert {"matchLabels": labels["submitter"]} in allowed


def test_keeper__is_closed_and_reaches_the_head():
    (keep,) = documents(KUBERAY / "keep.yaml")
    spec = keep["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    head = pod_templates(rays()["raycluster"])["head"]["spec"]
    assert container["securityContext"] == head["containers"][0]["securityContext"]
    assert container["image"] == head["containers"][0]["image"]
    for name in ("serviceAccountName", "automountServiceAccountToken", "nodeSelector"):
        assert spec[name] == head[name]
    assert spec["securityContext"]["runAsNonRoot"] is True
    labels = keep["spec"]["template"]["metadata"]["labels"]
    assert keep["spec"]["selector"]["matchLabels"] == labels
    _, policy = documents(KUBERAY / "network-policy.yaml")
    allowed = [peer.get("podSelector") for peer in policy["spec"]["ingress"][0]["from"]]
    assert {"matchLabels": labels} in allowed
    values = {each["name"]: each.get("value") for each in container["env"]}
    name = documents(KUBERAY / "raycluster.yaml")[0]["metadata"]["name"]
    assert values["ABLATION_DASHBOARD"] == f"http://{name}-head-svc:8265"


def test_kuberay__names_that_refer_to_others_exist():
    secrets = {
        thing["metadata"]["name"]: thing for thing in documents(KUBERAY / "secret.example.yaml")
    }
    assert "auth_token" in secrets["ablation-ray"]["stringData"]
    (account,) = documents(KUBERAY / "service-account.yaml")
    (kustomization,) = documents(KUBERAY / "kustomization.yaml")
    assert all((KUBERAY / name).is_file() for name in kustomization["resources"])
    (profile,) = kustomization["configMapGenerator"]
    for thing in rays().values():
        cluster = thing["spec"].get("rayClusterSpec", thing["spec"])
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ablation-ray"}
        for template in pod_templates(thing).values():
            spec = template["spec"]
            assert spec["serviceAccountName"] == account["metadata"]["name"]
            maps = {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v}
            assert maps <= {profile["name"], "ablation-study"}
            for source in spec["containers"][0].get("envFrom", []):
                assert source["secretRef"]["name"] in secrets


def test_secrets__the_example_has_no_values():
    for thing in documents(KUBERAY / "secret.example.yaml"):
        assert set(thing["stringData"].values()) == {""}
