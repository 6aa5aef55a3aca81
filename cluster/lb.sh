# lb-agent as it ships, in the lab; sourced after lib.sh by proxy.sh and by `cargo xtask cluster`.
# $LAB/lb/image.tar is the archive that `cargo xtask image` made.
k() { inns fab kubectl "$@"; }
LB_PODS=k8s-app=lb-agent
lb_import() { local i; for i in $(seq "$NODES"); do
  onnode "$i" ctr -n k8s.io images import --local --all-platforms "$LAB/lb/image.tar" >/dev/null || return 1; done; }
lb_manifests() { k kustomize "$HERE/${1:-lb}" | sed "s|value: /host/cgroup$|value: /host/cgroup${V2#/sys/fs/cgroup}|"; }
# lb_apply [lb-by-label]: applies the manifests; waits for nothing
lb_apply() { k apply -f "$HERE/kube-proxy-config.yaml" && lb_manifests "${1:-lb}" | k apply -f -; }
# lb_wait: until every node that should have the agent has a ready one
lb_wait() { k -n kube-system rollout status ds/lb-agent --timeout=180s && return
  k -n kube-system describe pods -l "$LB_PODS" | tail -30; k -n kube-system logs -l "$LB_PODS" --tail=20; return 1; }
lb_restart() { k -n kube-system rollout restart ds/lb-agent && lb_wait; }
# lb_exec NODE ARGUMENTS: lb-agent ARGUMENTS in the agent's pod on that node
lb_exec() { local p; p=$(k -n kube-system get pods -l "$LB_PODS" --field-selector "spec.nodeName=$1,status.phase=Running" -o name | head -1); shift
  k -n kube-system exec "$p" -- lb-agent "$@"; }
# lb_delete: the manifests' objects go, and what stays in the kernel of each node after them
lb_delete() { local i; lb_manifests | k delete -f - --wait >/dev/null; k -n kube-system wait --for=delete pod -l "$LB_PODS" --timeout=60s >/dev/null 2>&1
  for i in $(seq "$NODES"); do onnode "$i" "$LAB/lb/lb-agent" cleanup --cgroup "$V2" || return 1; done; }
