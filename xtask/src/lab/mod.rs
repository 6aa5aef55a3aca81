//! A small cluster of network namespaces on this machine, with real servers and real agents.
//!
//! ```text
//!            client 192.0.2.100            outside of the cluster
//!               |
//!   ----+-------+-------+----   fabric: a bridge in a namespace of its own
//!       |               |
//!     node1 .11       node2 .12            each with its own agent, cgroup and bpffs
//!     |     |         |     |
//!    p1a   p1b       p2a   p2b             10.77.N.10, 10.77.N.11 behind veths, /32 routes, no bridge
//! ```
//!
//! Names begin with `<prefix>-<pid>-`; [`janitor`] removes all of it. Use it from the main thread: its processes end
//! with the thread that started them.

mod bridge;
pub(crate) mod crowd;
pub(crate) mod janitor;
pub(crate) mod manifests;
pub(crate) mod netns;
pub(crate) mod node;
pub(crate) mod probe;
mod rules;
pub(crate) mod servers;
pub(crate) mod traffic;
pub(crate) mod tun;
pub(crate) mod worker;
pub(crate) mod xdp;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use self::manifests::{Endpoint, POD_PORT, Service};
use self::netns::{ip, run_in, sysctl};
use self::node::Node;
use self::rules::{HOSTILE_RULES, MASQUERADE_RULES};
use self::worker::{Answer, Ask, Worker};

/// Prefixes of all names ever given, for the removal of what killed runs left.
pub(crate) const PREFIXES: [&str; 3] = ["lbdemo", "lbtest", "lbbench"];
/// Address ranges of pods.
pub(crate) const POD_CIDRS: [&str; 2] = ["10.77.0.0/16", "fd77::/32"];
/// Address ranges of Services.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
/// The client's addresses.
pub(crate) const CLIENT: [&str; 2] = ["192.0.2.100", "2001:db8:1::100"];
/// Every pod's default gateway; the node's end of each veth has this MAC address.
const GATEWAY: [&str; 2] = ["169.254.1.1", "fe80::1"];
const NODE_MAC: &str = "02:00:00:00:00:01";

/// What kind of node the cluster has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Plain routing, rp_filter=2, no packet filter.
    Friendly,
    /// rp_filter=1, FORWARD drops by policy, INVALID dropped, pods of the other node by plain routes.
    Hostile,
    /// As `Hostile`, pods of the other node over VXLAN with MTU 1450.
    Overlay,
}

/// Who opens the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// Outside of the cluster.
    Client,
    /// A process of the node with this index.
    Node(usize),
    /// A pod by name.
    Pod(&'static str),
}

/// A pod with its server and its client side.
pub(crate) struct Pod {
    /// Index of its node.
    pub(crate) node: usize,
    /// Its network namespace.
    pub(crate) namespace: String,
    /// The node's end of its veth.
    pub(crate) device: String,
    /// IPv4 and IPv6 address.
    pub(crate) addresses: [String; 2],
    /// A process in the pod that opens sockets.
    pub(crate) worker: Worker,
    server: Child,
}

impl Drop for Pod {
    fn drop(&mut self) {
        janitor::ended(self.server.id());
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// The cluster. Dropping it removes everything.
pub(crate) struct Lab {
    /// First part of every name: `<prefix>-<pid>`.
    pub(crate) tag: String,
    /// Its nodes: node1, node2.
    pub(crate) nodes: Vec<Node>,
    /// Its pods by name.
    pub(crate) pods: BTreeMap<String, Pod>,
    /// A process outside of the cluster that opens sockets.
    pub(crate) client: Worker,
    /// Manifests that all agents read.
    pub(crate) manifests: PathBuf,
    /// Folder with logs and manifests.
    pub(crate) folder: PathBuf,
    /// What kind of node it has.
    pub(crate) kind: Kind,
    _guard: janitor::Guard,
}

impl Lab {
    /// Builds namespaces, links, routes, servers; no agent runs yet.
    ///
    /// # Errors
    /// When a command fails; what was made is removed when the janitor cleans.
    pub(crate) fn new(prefix: &str, kind: Kind) -> Result<Self> {
        janitor::watch_signals();
        janitor::sweep(&PREFIXES, &node::cgroup_root()?, false);
        let tag = format!("{prefix}-{}", std::process::id());
        let home = std::env::temp_dir().join(&tag);
        let folder = home.join(format!("{kind:?}").to_lowercase());
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests)?;
        janitor::folder(&home);
        let built = Self::build(tag, kind, folder, manifests);
        if built.is_err() {
            janitor::clean();
        }
        built
    }

    fn build(tag: String, kind: Kind, folder: PathBuf, manifests: PathBuf) -> Result<Self> {
        let fabric = namespace(&tag, "fabric")?;
        ip(&fabric, &["link add br0 type bridge mcast_snooping 0".into(), "link set br0 up".into()])?;
        let outside = namespace(&tag, "client")?;
        uplink(&fabric, &outside, &CLIENT.map(String::from))?;
        let mut lines = vec![
            "address add 192.0.2.1/24 dev eth0".to_owned(),
            "address add 2001:db8:1::1/64 dev eth0 nodad preferred_lft 0".into(),
        ];
        for (range, via) in [
            ("203.0.113.0/24", "192.0.2.11"),
            ("198.51.100.0/24", "192.0.2.11"),
            ("2001:db8:203::/64", "2001:db8:1::11"),
        ] {
            lines.push(format!("route add {range} via {via}"));
        }
        ip(&outside, &lines)?;
        let client = Worker::start(&outside, None)?;
        let mut lab = Self {
            tag,
            nodes: Vec::new(),
            pods: BTreeMap::new(),
            client,
            manifests,
            folder,
            kind,
            _guard: janitor::Guard,
        };
        lab.manifest("cidr", &manifests::service_cidr(&SERVICE_CIDRS))?;
        for number in 1..=2 {
            lab.add_node(&fabric, number)?;
        }
        for number in 1..=2 {
            lab.connect_nodes(number)?;
        }
        for (index, letter) in [(0, "a"), (0, "b"), (1, "a"), (1, "b")] {
            lab.add_pod(index, letter)?;
        }
        Ok(lab)
    }

    fn add_node(&mut self, fabric: &str, number: usize) -> Result<()> {
        let name = format!("node{number}");
        let own = namespace(&self.tag, &name)?;
        let strict = if self.kind == Kind::Friendly { "2" } else { "1" };
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/all/accept_ra", "0"),
            ("ipv4/conf/all/rp_filter", strict),
            ("ipv4/conf/default/rp_filter", strict),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/icmp_ratelimit", "0"), // a refusal that the limit swallows would look like a drop
            ("ipv6/icmp/ratelimit", "0"),
        ];
        sysctl(&own, &settings)?;
        let addresses = [format!("192.0.2.1{number}"), format!("2001:db8:1::1{number}")];
        uplink(fabric, &own, &addresses)?;
        ip(&own, &["route add default via 192.0.2.1".into(), "route add default via 2001:db8:1::1".into()])?;
        if self.kind != Kind::Friendly {
            run_in(&own, &["nft", "-f", "-"], HOSTILE_RULES)?;
        }
        if self.kind == Kind::Overlay {
            run_in(&own, &["nft", "-f", "-"], MASQUERADE_RULES)?;
        }
        let cidrs = [format!("10.77.{number}.0/24"), format!("fd77:0:0:{number}::/64")];
        self.manifest(&name, &manifests::node(&name, &addresses, &cidrs))?;
        let configuration = manifests::configuration(&name, &POD_CIDRS);
        self.nodes.push(Node::new(&name, &own, addresses, &self.folder, &self.manifests, &configuration)?);
        Ok(())
    }

    /// A further host on the fabric, outside of the cluster; returns its namespace.
    ///
    /// # Errors
    /// When a command fails.
    pub(crate) fn add_host(&self, name: &str, addresses: &[String; 2]) -> Result<String> {
        let own = namespace(&self.tag, name)?;
        uplink(&format!("{}-fabric", self.tag), &own, addresses)?;
        Ok(own)
    }

    /// Routes to the pods of the other node, plain or over VXLAN as flannel does it.
    fn connect_nodes(&self, number: usize) -> Result<()> {
        let other = 3 - number;
        let own = &self.nodes[number - 1].namespace;
        if self.kind != Kind::Overlay {
            return ip(
                own,
                &[
                    format!("route add 10.77.{other}.0/24 via 192.0.2.1{other}"),
                    format!("route add fd77:0:0:{other}::/64 via 2001:db8:1::1{other}"),
                ],
            );
        }
        let mac = format!("02:00:00:00:77:0{other}");
        ip(
            own,
            &[
                format!(
                    "link add vx0 mtu 1450 address 02:00:00:00:77:0{number} type vxlan id 7 dstport 8472 \
                     local 192.0.2.1{number} dev eth0 nolearning"
                ),
                format!("address add 10.77.{number}.0/32 dev vx0"),
                format!("address add fd77:0:0:{number}::/128 dev vx0 nodad"),
                "link set vx0 up".into(),
                format!("route add 10.77.{other}.0/24 via 10.77.{other}.0 dev vx0 onlink"),
                format!("route add fd77:0:0:{other}::/64 via fd77:0:0:{other}:: dev vx0 onlink"),
                format!("neigh replace 10.77.{other}.0 lladdr {mac} dev vx0 nud permanent"),
                format!("neigh replace fd77:0:0:{other}:: lladdr {mac} dev vx0 nud permanent"),
            ],
        )?;
        run_in(own, &["bridge", "fdb", "append", &mac, "dev", "vx0", "dst", &format!("192.0.2.1{other}")], "")
            .map(drop)
    }

    /// A pod `p<node><letter>` with its servers; works at any time.
    ///
    /// # Errors
    /// When a command fails or the servers don't come up.
    pub(crate) fn add_pod(&mut self, index: usize, letter: &str) -> Result<()> {
        let number = index + 1;
        let name = format!("p{number}{letter}");
        let node = &self.nodes[index];
        let own = namespace(&self.tag, &name)?;
        let host = letter.bytes().next().map_or(10, |byte| 10 + u32::from(byte - b'a'));
        let addresses = [format!("10.77.{number}.{host}"), format!("fd77:0:0:{number}::{host}")];
        let device = format!("veth{name}");
        let mtu = if self.kind == Kind::Overlay { "mtu 1450" } else { "" };
        ip(
            &node.namespace,
            &[
                format!(
                    "link add {device} {mtu} address {NODE_MAC} type veth peer name eth0 {mtu} netns {own}"
                ),
                format!("address add {}/64 dev {device} nodad", GATEWAY[1]),
                format!("link set {device} up"),
                format!("route add {}/32 dev {device}", addresses[0]),
                format!("route add {}/128 dev {device}", addresses[1]),
            ],
        )?;
        ip(
            &own,
            &[
                "link set eth0 up".into(),
                format!("address add {}/32 dev eth0", addresses[0]),
                format!("address add {}/128 dev eth0 nodad", addresses[1]),
                format!("route add {} dev eth0", GATEWAY[0]),
                format!("route add default via {} dev eth0", GATEWAY[0]),
                format!("route add default via {} dev eth0", GATEWAY[1]),
                format!("neigh replace {} lladdr {NODE_MAC} dev eth0 nud permanent", GATEWAY[0]),
                format!("neigh replace {} lladdr {NODE_MAC} dev eth0 nud permanent", GATEWAY[1]),
            ],
        )?;
        self.start_pod(name, index, own, device, addresses)
    }

    /// Starts the servers of a pod whose namespace is ready.
    fn start_pod(
        &mut self,
        name: String,
        index: usize,
        own: String,
        device: String,
        addresses: [String; 2],
    ) -> Result<()> {
        let node = &self.nodes[index];
        let workloads = node.workloads();
        let mut command = netns::command(&own, Some(&workloads), Path::new(netns::OWN_PROGRAM))?;
        command.args(["serve", "--pod", &name, "--node", &node.name, "--port", &POD_PORT.to_string()]);
        let mut server = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        janitor::process(server.id());
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line.trim() == "listening", "the servers of pod {name} did not start");
        let worker = Worker::start(&own, Some(&workloads))?;
        self.pods
            .insert(name.clone(), Pod { node: index, namespace: own, device, addresses, worker, server });
        Ok(())
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn pod(&mut self, name: &str) -> Result<&mut Pod> {
        self.pods.get_mut(name).with_context(|| format!("no pod {name}"))
    }

    /// Asks the worker of a side and waits for its answer.
    ///
    /// # Errors
    /// When there is no such side, or its worker is gone.
    pub(crate) fn ask(&mut self, side: Side, ask: &Ask) -> Result<Answer> {
        match side {
            Side::Client => self.client.ask(ask),
            Side::Node(index) => self.nodes.get_mut(index).context("no such node")?.worker.ask(ask),
            Side::Pod(name) => self.pod(name)?.worker.ask(ask),
        }
    }

    /// Writes one manifest, replacing an older one of that name at once.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn manifest(&self, name: &str, text: &str) -> Result<()> {
        let path = self.manifests.join(format!("{name}.yaml"));
        let fresh = path.with_extension("yaml.tmp");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &path).with_context(|| path.display().to_string())
    }

    /// Writes a Service and its EndpointSlices of both families with these pods behind it.
    ///
    /// # Errors
    /// When a pod does not exist or a file can't be written.
    pub(crate) fn service(&self, service: &Service, pods: &[&str]) -> Result<()> {
        self.endpoints(&service.name, pods)?;
        self.manifest(&format!("service-{}", service.name), &service.yaml())
    }

    /// Writes the EndpointSlices of a Service anew.
    ///
    /// # Errors
    /// As [`Lab::service`].
    pub(crate) fn endpoints(&self, service: &str, pods: &[&str]) -> Result<()> {
        let mut endpoints = Vec::new();
        for name in pods {
            let pod = self.pods.get(*name).with_context(|| format!("no pod {name}"))?;
            for address in &pod.addresses {
                endpoints
                    .push(Endpoint { address: address.clone(), node: self.nodes[pod.node].name.clone() });
            }
        }
        for v6 in [false, true] {
            self.manifest(
                &format!("slice-{service}-{}", if v6 { 6 } else { 4 }),
                &manifests::slice(service, v6, &endpoints),
            )?;
        }
        Ok(())
    }

    /// Starts the agents of all nodes.
    ///
    /// # Errors
    /// When one isn't healthy in time.
    pub(crate) fn start_agents(&mut self, program: &Path) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.start_agent(program))
    }

    /// All namespaces that carry the cluster's packets.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|node| node.namespace.clone());
        let pods = self.pods.values().map(|pod| pod.namespace.clone());
        nodes.chain(pods).chain([format!("{}-client", self.tag)]).collect()
    }
}

/// A namespace `<tag>-<short>` of the cluster; goes away with it.
///
/// # Errors
/// When it can't be made.
pub(crate) fn namespace(tag: &str, short: &str) -> Result<String> {
    let name = format!("{tag}-{short}");
    janitor::namespace(&name);
    crate::run::output(std::process::Command::new("ip").args(["netns", "add", &name]))?;
    let settings = [
        // a link-local address is no source for neighbour discovery during its first second otherwise
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        // nodes and client share a segment: a redirect would teach the client a way around the node
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
    ];
    sysctl(&name, &settings)?;
    ip(&name, &["link set lo up".into()])?;
    Ok(name)
}

/// Connects a namespace's `eth0` with the fabric's bridge.
///
/// # Errors
/// When a command fails.
pub(crate) fn uplink(fabric: &str, own: &str, addresses: &[String; 2]) -> Result<()> {
    let port = format!("port-{}", own.rsplit('-').next().unwrap_or(own));
    ip(
        fabric,
        &[
            format!("link add {port} type veth peer name eth0 netns {own}"),
            format!("link set {port} master br0"),
            format!("link set {port} up"),
        ],
    )?;
    ip(
        own,
        &[
            format!("address add {}/24 dev eth0", addresses[0]),
            format!("address add {}/64 dev eth0 nodad", addresses[1]),
            "link set eth0 up".into(),
        ],
    )
}
