//! The API objects a cluster is fed with, as YAML text.

use std::fmt::Write;

/// A Service with one port per protocol, all to the pods' one port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    /// Its name, in namespace `default`.
    pub(crate) name: String,
    /// ClusterIPs, at most one per family.
    pub(crate) cluster_ips: Vec<String>,
    /// NodePort for TCP; UDP has the next number. `None`: type ClusterIP.
    pub(crate) node_port: Option<u16>,
    /// `externalIPs`.
    pub(crate) external_ips: Vec<String>,
    /// Addresses of the load balancer.
    pub(crate) lb_ips: Vec<String>,
    /// Annotations, such as `a.io/b: c`.
    pub(crate) annotations: Vec<String>,
    /// More lines of the spec, such as `externalTrafficPolicy: Local`.
    pub(crate) spec: Vec<String>,
}

/// Port of every Service here.
pub(crate) const SERVICE_PORT: u16 = 80;
/// Port of every pod's servers.
pub(crate) const POD_PORT: u16 = 8080;

/// One endpoint: address and node.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Pod address.
    pub(crate) address: String,
    /// Name of its node.
    pub(crate) node: String,
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn is_v6(address: &str) -> bool {
    address.contains(':')
}

impl Service {
    /// The Service as YAML.
    pub(crate) fn yaml(&self) -> String {
        let kind = match (&self.node_port, self.lb_ips.is_empty()) {
            (_, false) => "LoadBalancer",
            (Some(_), true) => "NodePort",
            (None, true) => "ClusterIP",
        };
        let families: Vec<String> =
            self.cluster_ips.iter().map(|ip| if is_v6(ip) { "IPv6" } else { "IPv4" }.to_owned()).collect();
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: default, annotations: {{{}}}}}\nspec:\n  type: {kind}\n  \
             clusterIP: \"{}\"\n  clusterIPs: [{}]\n  ipFamilies: [{}]\n",
            self.name,
            self.annotations.join(", "),
            self.cluster_ips.first().map_or("", String::as_str),
            list(&self.cluster_ips),
            list(&families),
        );
        if self.cluster_ips.len() > 1 {
            text += "  ipFamilyPolicy: RequireDualStack\n";
        }
        if !self.external_ips.is_empty() {
            writeln!(text, "  externalIPs: [{}]", list(&self.external_ips)).ok();
        }
        for line in &self.spec {
            writeln!(text, "  {line}").ok();
        }
        text += "  ports:\n";
        for (offset, protocol) in ["TCP", "UDP"].iter().enumerate() {
            let node_port = self
                .node_port
                .map(|port| format!(", nodePort: {}", port + offset as u16))
                .unwrap_or_default();
            writeln!(
                text,
                "  - {{name: {}, protocol: {protocol}, port: {SERVICE_PORT}, targetPort: {POD_PORT}{node_port}}}",
                protocol.to_lowercase()
            )
            .ok();
        }
        if !self.lb_ips.is_empty() {
            let ips =
                self.lb_ips.iter().map(|ip| format!("{{ip: \"{ip}\", ipMode: VIP}}")).collect::<Vec<_>>();
            writeln!(text, "status: {{loadBalancer: {{ingress: [{}]}}}}", ips.join(", ")).ok();
        }
        text
    }
}

/// An EndpointSlice of one family for a Service; endpoints of the other family are left out.
pub(crate) fn slice(service: &str, v6: bool, endpoints: &[Endpoint]) -> String {
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{}\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: {family}\nports:\n",
        family.to_lowercase()
    );
    for protocol in ["TCP", "UDP"] {
        writeln!(text, "- {{name: {}, protocol: {protocol}, port: {POD_PORT}}}", protocol.to_lowercase())
            .ok();
    }
    let mine: Vec<_> = endpoints.iter().filter(|endpoint| is_v6(&endpoint.address) == v6).collect();
    text += if mine.is_empty() { "endpoints: []\n" } else { "endpoints:\n" };
    for Endpoint { address, node } in mine {
        writeln!(
            text,
            "- {{addresses: [\"{address}\"], nodeName: {node}, conditions: {{ready: true, serving: true, terminating: false}}}}"
        )
        .ok();
    }
    text
}

/// A Node with its addresses and pod ranges.
pub(crate) fn node(name: &str, addresses: &[String], pod_cidrs: &[String]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}\n\
         spec: {{podCIDR: \"{}\", podCIDRs: [{}]}}\nstatus:\n  addresses:\n",
        pod_cidrs.first().map_or("", String::as_str),
        list(pod_cidrs)
    );
    for address in addresses {
        writeln!(text, "  - {{type: InternalIP, address: \"{address}\"}}").ok();
    }
    text
}

/// The cluster's service ranges.
pub(crate) fn service_cidr(cidrs: &[&str]) -> String {
    let cidrs: Vec<String> = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\nspec: {{cidrs: [{}]}}\n",
        list(&cidrs)
    )
}

/// kube-proxy's configuration file, as a cluster's ConfigMap would hold it.
pub(crate) fn configuration(node: &str, cluster_cidrs: &[&str]) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
         hostnameOverride: {node}\nclusterCIDR: {}\ndetectLocalMode: ClusterCIDR\n\
         healthzBindAddress: 0.0.0.0:10256\nmetricsBindAddress: 127.0.0.1:10249\n\
         conntrack: {{maxPerCore: 0, min: 0}}\nnodePortAddresses: [primary, localhost, 198.18.7.0/24]\n",
        cluster_cidrs.join(",")
    )
}
