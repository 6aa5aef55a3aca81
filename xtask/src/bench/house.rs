//! A node with two pods, once per arm, all at the same time: for traffic between the pods, and from the node to a pod.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::programs::TcAttachType;
use lb_common::bench::BenchPeer;

use super::meter::unpin;
use super::programs::Programs;
use super::proxy;
use super::rules::{self, Probed};
use super::stand::Site;
use super::start;
use super::testrun::ifindex;
use crate::lab::manifests::{self, Endpoint, POD_PORT, SERVICE_PORT, Service};
use crate::lab::netns::{inside, ip, run_in, sysctl};
use crate::lab::node::{Node, cgroup_root};
use crate::lab::{POD_CIDRS, SERVICE_CIDRS, namespace};

/// The Service; its one endpoint is the second pod.
pub(crate) const VIP: &str = "10.96.255.1";
/// The two pods.
pub(crate) const PODS: [&str; 2] = ["10.77.1.10", "10.77.1.11"];
const ADDRESS: &str = "192.0.2.11";

/// How the node gets to the Service's endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Not at all: there is none.
    Plain,
    /// iptables rules for so many Services.
    Iptables(usize),
    /// nft rules for so many Services.
    Nft(usize),
    /// The real kube-proxy with so many Services, its binary and mode.
    KubeProxy(usize, PathBuf, &'static str),
    /// lb's agent with so many Services, and further arguments.
    Lb(usize, &'static [&'static str]),
    /// No Service: straight from one pod into the other.
    Ideal,
    /// No Service, and an empty program where lb has one at TC.
    EmptyPrograms,
    /// No Service, and an empty program at the node's sockets.
    EmptyHook,
}

/// A node with its pods.
pub(crate) struct House {
    /// Namespaces of the two pods.
    pub(crate) pods: [String; 2],
    /// The node.
    pub(crate) node: Node,
    _programs: Option<Programs>,
}

fn mac(pod: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, 10 + pod as u8]
}

impl House {
    /// Builds it; `number` makes its names its own.
    ///
    /// # Errors
    /// When a command fails, rules are refused, or an agent does not serve.
    pub(crate) fn new(site: &Site, number: usize, way: &Way) -> Result<Self> {
        unpin()?; // what is started from here may use all cores
        let own = namespace(&site.tag, &format!("{number}house"))?;
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ];
        sysctl(&own, &settings)?;
        ip(
            &own,
            &[
                "link add up0 type veth peer name up1".into(),
                "link set up0 up".into(),
                "link set up1 up".into(),
                format!("address add {ADDRESS}/24 dev up0"),
                "address add 2001:db8:1::11/64 dev up0 nodad".into(),
                "route add default via 192.0.2.1".into(),
            ],
        )?;
        let pods = [0, 1].map(|pod| pod_of(site, number, &own, pod));
        let [first, second] = pods;
        let folder = site.folder.join(&own);
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests)?;
        let addresses = [ADDRESS.to_owned(), "2001:db8:1::11".to_owned()];
        let configuration = manifests::configuration("node1", &POD_CIDRS);
        let node = Node::new("node1", &own, addresses, &folder, &manifests, &configuration)?;
        let mut house = Self { pods: [first?, second?], node, _programs: None };
        house.handle(site, way, &manifests)?;
        Ok(house)
    }

    fn handle(&mut self, site: &Site, way: &Way, folder: &Path) -> Result<()> {
        let own = self.node.namespace.clone();
        match way {
            Way::Plain => {}
            Way::Iptables(services) => {
                run_in(&own, &["iptables-legacy-restore"], &rules::iptables(*services, &probed()?))?;
            }
            Way::Nft(services) => {
                run_in(&own, &["nft", "-f", "-"], &rules::nft(*services, &probed()?))?;
            }
            Way::Lb(services, arguments) => {
                write(folder, *services)?;
                self.node.extra = arguments.iter().map(|&argument| argument.to_owned()).collect();
                self.node.start_agent(&site.agent)?;
                // the data path works on, and the agent's own work is not measured
                self.node.stop_agent(libc::SIGTERM)?;
            }
            Way::KubeProxy(services, binary, mode) => {
                write(folder, *services)?;
                proxy::program(binary, &self.node, folder, mode, VIP)?;
            }
            Way::Ideal => {
                let mut programs = Programs::load()?;
                inside(&own, || {
                    for pod in 0..2 {
                        let device = format!("veth{pod}");
                        let peer = BenchPeer { ifindex: ifindex(&device)?, mac: mac(pod), pad: [0; 2] };
                        programs.peer(10 + pod as u8, peer)?;
                        programs.classify("bench_peer", &device, TcAttachType::Ingress)?;
                    }
                    Ok(())
                })?;
                self._programs = Some(programs);
            }
            Way::EmptyPrograms => {
                let mut programs = Programs::load()?;
                inside(&own, || {
                    for device in ["veth0", "veth1"] {
                        programs.classify("bench_pass", device, TcAttachType::Ingress)?;
                        programs.classify("bench_pass", device, TcAttachType::Egress)?;
                    }
                    Ok(())
                })?;
                self._programs = Some(programs);
            }
            Way::EmptyHook => {
                let mut programs = Programs::load()?;
                programs.cgroup("bench_connect4", &self.node.cgroup)?;
                self._programs = Some(programs);
            }
        }
        Ok(())
    }

    /// The gate after the fact: no TCP segment arrived with a wrong checksum, at either pod or the node.
    ///
    /// # Errors
    /// When one did.
    pub(crate) fn checksums_were_right(&self) -> Result<()> {
        for namespace in self.pods.iter().chain([&self.node.namespace]) {
            let table = inside(namespace, || Ok(fs::read_to_string("/proc/thread-self/net/snmp")?))?;
            let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
            let (names, values) =
                lines.next().zip(lines.next()).context("/proc/net/snmp has another form")?;
            let mut pairs = names.split(' ').zip(values.split(' '));
            let (_, wrong) = pairs.find(|(name, _)| *name == "InCsumErrors").context("no InCsumErrors")?;
            ensure!(wrong == "0", "{wrong} segments with a wrong checksum at {namespace}");
        }
        Ok(())
    }

    /// Does something as a process of this node; afterwards we are where we were.
    ///
    /// # Errors
    /// When a cgroup can't be entered, and those of the action.
    pub(crate) fn inside_cgroup<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = own_cgroup()?;
        enter(&self.node.workloads())?;
        let done = action();
        enter(&home)?;
        done
    }
}

fn enter(group: &Path) -> Result<()> {
    let file = group.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| file.display().to_string())
}

fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
    Ok(cgroup_root()?.join(path))
}

/// A pod behind a veth with a /32 route, as the lab's are.
fn pod_of(site: &Site, number: usize, node: &str, pod: usize) -> Result<String> {
    let own = namespace(&site.tag, &format!("{number}pod{pod}"))?;
    let address = mac(pod).map(|byte| format!("{byte:02x}")).join(":");
    let gateway = "02:00:00:00:00:01";
    ip(
        node,
        &[
            format!(
                "link add veth{pod} address {gateway} type veth peer name eth0 address {address} netns {own}"
            ),
            format!("link set veth{pod} up"),
            format!("route add {}/32 dev veth{pod}", PODS[pod]),
            format!("neigh replace {} lladdr {address} dev veth{pod} nud permanent", PODS[pod]),
        ],
    )?;
    ip(
        &own,
        &[
            "link set eth0 up".into(),
            format!("address add {}/32 dev eth0", PODS[pod]),
            "route add 169.254.1.1 dev eth0".into(),
            "route add default via 169.254.1.1 dev eth0".into(),
            format!("neigh replace 169.254.1.1 lladdr {gateway} dev eth0 nud permanent"),
        ],
    )?;
    Ok(own)
}

fn probed() -> Result<Probed> {
    Ok(Probed {
        protocol: "tcp",
        cluster_ip: (VIP.parse()?, SERVICE_PORT),
        node_port: 30_080,
        node: ADDRESS.parse()?,
        endpoints: vec![(PODS[1].parse::<Ipv4Addr>()?, POD_PORT)],
    })
}

/// The node's manifests.
fn write(folder: &Path, services: usize) -> Result<()> {
    let write = |name: &str, text: &str| fs::write(folder.join(format!("{name}.yaml")), text);
    let addresses = [ADDRESS.to_owned(), "2001:db8:1::11".to_owned()];
    let cidrs = ["10.77.1.0/24".to_owned(), "fd77:0:0:1::/64".to_owned()];
    write("node1", &manifests::node("node1", &addresses, &cidrs))?;
    write("cidr", &manifests::service_cidr(&SERVICE_CIDRS))?;
    let endpoint = Endpoint { address: PODS[1].into(), node: "node1".into() };
    write("slice", &manifests::slice("probed", false, &[endpoint]))?;
    let service = Service { name: "probed".into(), cluster_ips: vec![VIP.into()], ..Service::default() };
    write("service", &service.yaml())?;
    for (name, text) in start::many(services.saturating_sub(1) as u32) {
        write(&name, &text)?;
    }
    Ok(())
}
