//! What handles a stand's packets: rules, or real agents.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::rules::{self, Probed};
use super::super::start;
use super::{BACKEND, BACKENDS, BEHIND, Course, Mode, NODE_PORT, POD_PORT, Site, Stand, UP, Way};
use crate::lab::manifests::{self, Endpoint, Service};
use crate::lab::netns::run_in;
use crate::lab::node::Node;
use crate::lab::{POD_CIDRS, SERVICE_CIDRS};

/// Entries of lb's table, more than the default: the flows of the largest run are all young at first, four entries each,
/// in a table of a quarter of this.
const ENTRIES: &str = "--max-flows=2097152";

/// How long agents may take to hear of each other.
const MEETING: Duration = Duration::from_secs(30);

impl Stand {
    /// Rules or agents.
    pub(super) fn handle(&mut self, site: &Site) -> Result<()> {
        let nodes: Vec<String> = [&self.node].into_iter().chain(&self.between).cloned().collect();
        for (number, namespace) in nodes.iter().enumerate() {
            match self.way {
                Way::Nft(services) => {
                    run_in(namespace, &["nft", "-f", "-"], &rules::nft(services, &probed()?))?;
                }
                Way::Iptables(services) => {
                    let text = rules::iptables(services, &probed()?);
                    run_in(namespace, &["iptables-legacy-restore"], &text)?;
                }
                Way::Lb(services, mode) => self.agent(site, number, namespace, services, mode)?,
                _ => {}
            }
        }
        if self.way.direct() {
            self.introduce().context("DSR")?;
        }
        // the data path works on, and the agents' own work is not measured
        self.agents.iter_mut().try_for_each(|node| node.stop_agent(libc::SIGTERM))
    }

    /// Waits until the agents know that the other node takes packets in an outer header.
    fn introduce(&mut self) -> Result<()> {
        let begin = Instant::now();
        for node in &mut self.agents {
            loop {
                let peers = status(node)?["dsrPeers"].to_string();
                if peers.contains(": takes") {
                    break;
                }
                ensure!(begin.elapsed() < MEETING, "{} says of the others: {peers}", node.name);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        std::thread::sleep(Duration::from_millis(1500)); // the tables follow, at most a second later
        Ok(())
    }

    /// Starts an agent and waits until it serves.
    fn agent(
        &mut self,
        site: &Site,
        number: usize,
        namespace: &str,
        services: usize,
        mode: Mode,
    ) -> Result<()> {
        let folder = site.folder.join(namespace);
        let manifests = folder.join("manifests");
        std::fs::create_dir_all(&manifests)?;
        let write = |name: &str, text: &str| std::fs::write(manifests.join(format!("{name}.yaml")), text);
        let names = ["node1", "node2"];
        let addresses =
            [[UP.to_owned(), "2001:db8:1::11".to_owned()], [BEHIND.to_owned(), "2001:db8:2::2".to_owned()]];
        for (at, (name, addresses)) in names.iter().zip(&addresses).enumerate() {
            let cidrs = [format!("10.77.{}.0/24", at + 1), format!("fd77:0:0:{}::/64", at + 1)];
            write(name, &manifests::node(name, addresses, &cidrs))?;
        }
        write("cidr", &manifests::service_cidr(&SERVICE_CIDRS))?;
        let home = if self.course == Course::Local { "node1" } else { "node2" };
        let endpoints: Vec<Endpoint> = (0..BACKENDS)
            .map(|at| Endpoint {
                address: Ipv4Addr::from(u32::from(BACKEND) + at).to_string(),
                node: home.into(),
            })
            .collect();
        write("slice", &manifests::slice("probed", false, &endpoints))?;
        let service = Service {
            name: "probed".into(),
            cluster_ips: vec!["10.96.255.1".into()],
            node_port: Some(NODE_PORT - 1), // UDP has the next one
            ..Service::default()
        };
        write("service", &service.yaml())?;
        for (name, text) in start::many(services.saturating_sub(1) as u32) {
            write(&name, &text)?;
        }
        let own = addresses.get(number).cloned().unwrap_or_default();
        let configuration = manifests::configuration(names[number], &POD_CIDRS);
        let mut node = Node::new(names[number], namespace, own, &folder, &manifests, &configuration)?;
        let uplinks = match (number, self.course) {
            (0, Course::Local) => "up0",
            (0, _) => "up0,out0",
            _ => "s0",
        };
        if self.course == Course::Sink {
            node.extra.push(ENTRIES.into());
        }
        if matches!(mode, Mode::Dsr | Mode::XdpDsr) {
            node.extra.push("--dsr=ipip".into());
        }
        if matches!(mode, Mode::Xdp | Mode::XdpDsr) {
            node.extra.push(format!("--xdp={uplinks}"));
        }
        node.start_agent(&site.agent)?;
        if matches!(mode, Mode::Xdp | Mode::XdpDsr) {
            let status = status(&mut node)?;
            let want: Vec<&str> = uplinks.split(',').collect();
            let have: Vec<&str> =
                status["xdp"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
            ensure!(
                want.iter().all(|name| have.contains(name)),
                "XDP is on {have:?} only: {}",
                status["xdpRefused"]
            );
        }
        self.agents.push(node);
        Ok(())
    }
}

fn status(node: &mut Node) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&node.http("127.0.0.1:10249", "/status")?.text)?)
}

/// The Service as rules see it.
fn probed() -> Result<Probed> {
    Ok(Probed {
        protocol: "udp",
        cluster_ip: (Ipv4Addr::new(10, 96, 255, 1), 80),
        node_port: NODE_PORT,
        node: UP.parse()?,
        endpoints: (0..BACKENDS).map(|at| (Ipv4Addr::from(u32::from(BACKEND) + at), POD_PORT)).collect(),
    })
}
