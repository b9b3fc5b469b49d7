//! Which ports of which devices there are, which can be used, and why the others cannot.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use zerocopy::byteorder::little_endian::U16;

use super::load::Lib;
use super::objects::Device;
use super::params::{
    CANDIDATES_MAX, Candidate, FLAG_ETHERNET, FLAG_EXACT, FLAG_NEAR, FLAG_ROUTABLE, mtu_good,
};
use super::sys;
use crate::config::TransportConfig;

/// Entries of a port's GID table that are looked at.
const GIDS_MAX: u16 = 256;
/// Empty entries in a row that are taken for the table's end.
const EMPTY_MAX: usize = 32;
/// Bytes of a GID that name an InfiniBand subnet.
const SUBNET_BYTES: usize = 8;
const SYSFS: &str = "/sys/class/infiniband";

/// An entry of a port's GID table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gid {
    pub(super) index: u8,
    pub(super) raw: [u8; 16],
    /// RoCE version 2: packets are routable.
    pub(super) routable: bool,
}

impl Gid {
    fn ip(&self) -> IpAddr {
        let ip = Ipv6Addr::from(self.raw);
        ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
    }

    /// How well it serves a connection whose socket has this address: less is better.
    fn rank(&self, socket: IpAddr) -> u8 {
        let is_link_local = matches!(self.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
        match (self.routable, self.ip()) {
            (true, ip) if ip == socket.to_canonical() => 0,
            (true, IpAddr::V4(_)) => 1,
            (true, _) if !is_link_local => 2,
            (true, _) => 3,
            (false, ip) if ip == socket.to_canonical() => 4,
            (false, _) => 5,
        }
    }
}

/// A port that can be used.
pub(super) struct Port {
    pub(super) device: Arc<Device>,
    pub(super) number: u8,
    pub(super) lid: u16,
    pub(super) mtu: u8,
    pub(super) ethernet: bool,
    near: Near,
    gids: Vec<Gid>,
}

/// Where a device is, seen from the cores that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Near {
    Yes,
    /// It is not on a bus: a device in software.
    Unknown,
    No,
}

/// What this process can do by RDMA.
pub(super) struct Ports {
    pub(super) usable: Vec<Port>,
    /// What cannot be used, each with the reason.
    pub(super) rejected: Vec<String>,
}

impl Ports {
    /// Looks at every device that the settings allow.
    ///
    /// # Errors
    /// Why there is no port that can be used.
    pub(super) fn find(config: &TransportConfig) -> Result<Self, String> {
        let lib = Lib::load()?;
        let names = Device::names(&lib).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => "no RDMA device: the kernel has no RDMA loaded".into(),
            _ => format!("no RDMA device: {error}"),
        })?;
        let mut ports = Self {
            usable: Vec::new(),
            rejected: Vec::new(),
        };
        for name in names {
            if config
                .verbs_device
                .as_ref()
                .is_some_and(|only| *only != name)
            {
                ports
                    .rejected
                    .push(format!("{name} (setting verbs_device)"));
                continue;
            }
            match Device::open(&lib, &name) {
                Ok(device) => ports.device_add(&device, config),
                Err(error) => ports.rejected.push(format!("{name} ({error})")),
            }
        }
        ports.usable.sort_by_key(|port| port.near);
        match ports.usable.is_empty() {
            false => Ok(ports),
            true if ports.rejected.is_empty() => Err("no RDMA device".into()),
            true => Err(format!(
                "no usable RDMA port: {}",
                ports.rejected.join(", ")
            )),
        }
    }

    fn device_add(&mut self, device: &Arc<Device>, config: &TransportConfig) {
        for number in 1..=device.attr.phys_port_cnt {
            if config.verbs_port.is_some_and(|only| only != number) {
                let text = format!("{} port {number} (setting verbs_port)", device.name);
                self.rejected.push(text);
                continue;
            }
            match port_open(device, number, config.verbs_gid_index) {
                Ok(port) => self.usable.push(port),
                Err(why) => {
                    let text = format!("{} port {number} ({why})", device.name);
                    self.rejected.push(text);
                }
            }
        }
    }

    /// Where a listener listens that names no address: at a port's, which its peers reach.
    pub(super) fn address_default(&self) -> Result<IpAddr, String> {
        let found = self.usable.iter().find_map(Port::address);
        found.ok_or_else(|| "no RDMA port has an IPv4 address: name one to listen at".into())
    }

    /// What a listener names to a peer whose socket came in at this address, the best first.
    pub(super) fn candidates(&self, socket: IpAddr) -> Vec<Choice> {
        let mut choices: Vec<_> = (0..self.usable.len())
            .map(|at| self.usable[at].choice(at, socket))
            .collect();
        choices.sort_by_key(|choice| (!choice.is_exact(), self.usable[choice.port].near));
        choices.truncate(CANDIDATES_MAX);
        choices
    }
}

/// A port, and the entry of its GID table to use with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    /// Its place among the usable ones.
    pub(super) port: usize,
    pub(super) gid: Gid,
    pub(super) named: Candidate,
}

impl Choice {
    fn is_exact(&self) -> bool {
        self.named.flags & FLAG_EXACT != 0
    }

    /// Whether packets from here can mean anything there.
    pub(super) fn fits(&self, other: &Candidate) -> bool {
        let own = &self.named;
        let same = |flag| own.flags & flag == other.flags & flag;
        let v4 = |gid: [u8; 16]| Ipv6Addr::from(gid).to_ipv4_mapped().is_some();
        same(FLAG_ETHERNET)
            && match own.flags & FLAG_ETHERNET {
                // One subnet of InfiniBand: LIDs mean nothing in another.
                0 => own.gid[..SUBNET_BYTES] == other.gid[..SUBNET_BYTES],
                _ => same(FLAG_ROUTABLE) && v4(own.gid) == v4(other.gid),
            }
    }
}

/// Which pairs of our ports and the peer's to try, the likeliest first.
pub(super) fn pairs(own: &[Choice], theirs: &[Candidate]) -> Vec<(Choice, u8)> {
    let mut pairs = Vec::new();
    for own in own {
        for (at, candidate) in theirs.iter().enumerate() {
            if own.fits(candidate) {
                pairs.push((*own, at as u8));
            }
        }
    }
    // Each list is in its owner's order already, and sorting keeps it where flags are equal.
    let misses = |flags: u8, flag| u8::from(flags & flag == 0);
    pairs.sort_by_key(|(own, at)| {
        let (own, theirs) = (own.named.flags, theirs[usize::from(*at)].flags);
        let both = |flag| misses(own, flag) + misses(theirs, flag);
        (both(FLAG_EXACT), both(FLAG_NEAR))
    });
    pairs.truncate(CANDIDATES_MAX);
    pairs
}

impl Port {
    /// The entry of its GID table that serves best.
    fn choice(&self, at: usize, socket: IpAddr) -> Choice {
        let best = self.gids.iter().min_by_key(|gid| gid.rank(socket));
        // A port is only usable with an entry.
        let gid = best.copied().unwrap_or(Gid {
            index: 0,
            raw: [0; 16],
            routable: false,
        });
        let mut flags = 0;
        for (flag, is) in [
            (FLAG_ETHERNET, self.ethernet),
            (FLAG_EXACT, gid.ip() == socket.to_canonical()),
            (FLAG_NEAR, self.near != Near::No),
            (FLAG_ROUTABLE, gid.routable),
        ] {
            flags |= if is { flag } else { 0 };
        }
        Choice {
            port: at,
            gid,
            named: Candidate {
                gid: gid.raw,
                lid: U16::new(self.lid),
                mtu: self.mtu,
                flags,
                reserved: [0; 4],
            },
        }
    }

    /// An address that peers reach the port by, for a listener that may choose.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let routable = self.gids.iter().filter(|gid| gid.routable);
        routable.map(Gid::ip).find(IpAddr::is_ipv4)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = if self.ethernet { "RoCE" } else { "InfiniBand" };
        let mtu = 128_u32 << self.mtu;
        write!(
            f,
            "{} port {} ({link}, MTU {mtu}",
            self.device.name, self.number
        )?;
        if let Some(address) = self.address() {
            write!(f, ", {address}")?;
        }
        f.write_str(")")
    }
}

/// Opens a port, or says why it cannot be used.
fn port_open(device: &Arc<Device>, number: u8, only: Option<u8>) -> Result<Port, String> {
    let attr = device.port(number).map_err(|error| error.to_string())?;
    if attr.state != sys::PORT_ACTIVE {
        return Err(format!("it is {}", state_name(attr.state)));
    }
    let mtu = attr.active_mtu as u8;
    if !mtu_good(mtu) {
        return Err(format!("its MTU has the code {mtu}"));
    }
    let ethernet = attr.link_layer == sys::LINK_LAYER_ETHERNET;
    if !ethernet && attr.lid == 0 {
        return Err("no subnet manager has given it a LID".into());
    }
    let table = u16::try_from(attr.gid_tbl_len).unwrap_or(0).min(GIDS_MAX);
    let (mut gids, mut empty) = (Vec::new(), 0);
    for index in (0..table).map(|index| index as u8) {
        if only.is_some_and(|only| only != index) {
            continue;
        }
        match gid_read(device, number, index, ethernet) {
            Some(gid) => {
                gids.push(gid);
                empty = 0;
            }
            None => empty += 1,
        }
        if empty > EMPTY_MAX {
            break;
        }
    }
    match (gids.is_empty(), only) {
        (true, Some(index)) => Err(format!("it has no GID {index} (setting verbs_gid_index)")),
        (true, None) => Err("it has no GID: has its network interface an address?".into()),
        (false, _) => Ok(Port {
            device: Arc::clone(device),
            number,
            lid: attr.lid,
            mtu,
            ethernet,
            near: near(&device.name),
            gids,
        }),
    }
}

fn gid_read(device: &Device, port: u8, index: u8, ethernet: bool) -> Option<Gid> {
    let path = format!(
        "{SYSFS}/{}/ports/{port}/gid_attrs/types/{index}",
        device.name
    );
    // Reading the type of an entry that is not there fails, and so says that it is not.
    let kind = fs::read_to_string(path).ok();
    if ethernet && kind.is_none() {
        return None;
    }
    let raw = device.gid(port, index).ok().filter(|gid| *gid != [0; 16])?;
    Some(Gid {
        index,
        raw,
        routable: kind.is_some_and(|kind| kind.trim() == "RoCE v2"),
    })
}

fn state_name(state: u32) -> &'static str {
    match state {
        1 => "down",
        2 => "initialising",
        3 => "armed, not active",
        _ => "in no known state",
    }
}

/// Whether the device is near one of the cores that this process may use.
fn near(device: &str) -> Near {
    let list = fs::read_to_string(format!("{SYSFS}/{device}/device/local_cpulist"));
    let Ok(list) = list else {
        return Near::Unknown;
    };
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else {
        return Near::Unknown;
    };
    match cpus_parse(&list) {
        None => Near::Unknown,
        Some(cpus) if cpus.iter().any(|cpu| allowed.is_set(*cpu)) => Near::Yes,
        Some(_) => Near::No,
    }
}

/// CPUs as sysfs lists them: `0-3,8`.
fn cpus_parse(list: &str) -> Option<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        let most = rustix::thread::CpuSet::MAX_CPU;
        cpus.extend(first.min(most)..(last + 1).min(most));
    }
    Some(cpus)
}

/// What can be said of RDMA here, for people.
pub(super) fn describe(config: &TransportConfig) -> Result<String, String> {
    let ports = Ports::find(config)?;
    let usable: Vec<_> = ports.usable.iter().map(ToString::to_string).collect();
    let mut text = usable.join(", ");
    if !ports.rejected.is_empty() {
        text = format!("{text}; not {}", ports.rejected.join(", "));
    }
    Ok(text)
}

/// As an error of the operating system, for what listens and connects.
pub(super) fn unavailable(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(text: &str, routable: bool) -> Gid {
        let ip: IpAddr = text.parse().unwrap();
        let raw = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        Gid {
            index: 0,
            raw,
            routable,
        }
    }

    fn choice(port: usize, text: &str, flags: u8) -> Choice {
        let gid = gid(text, true);
        Choice {
            port,
            gid,
            named: Candidate {
                gid: gid.raw,
                lid: U16::ZERO,
                mtu: 3,
                flags: flags | FLAG_ETHERNET | FLAG_ROUTABLE,
                reserved: [0; 4],
            },
        }
    }

    #[test]
    fn the_sockets_address_is_preferred_then_what_is_routable() {
        let socket = "10.0.0.1".parse().unwrap();
        let by_rank = [
            gid("10.0.0.1", true),
            gid("10.0.0.2", true),
            gid("2001:db8::1", true),
            gid("fe80::1", true),
            gid("10.0.0.1", false),
            gid("fe80::1", false),
        ];
        for (rank, gid) in by_rank.iter().enumerate() {
            assert_eq!(usize::from(gid.rank(socket)), rank);
        }
    }

    #[test]
    fn likely_pairs_are_tried_first_and_impossible_ones_never() {
        let own = [
            choice(0, "10.0.0.1", FLAG_NEAR),
            choice(1, "10.0.1.1", FLAG_EXACT),
            choice(2, "fe80::1", FLAG_NEAR | FLAG_EXACT),
        ];
        let theirs = [
            choice(0, "10.0.0.2", FLAG_NEAR).named,
            choice(0, "10.0.1.2", FLAG_EXACT).named,
        ];
        let tried: Vec<_> = pairs(&own, &theirs)
            .iter()
            .map(|(own, at)| (own.port, *at))
            .collect();
        assert_eq!(tried, [(1, 1), (0, 1), (1, 0), (0, 0)]);
        let mut infiniband = theirs[0];
        infiniband.flags &= !FLAG_ETHERNET;
        assert!(pairs(&own, &[infiniband]).is_empty());
    }

    #[test]
    fn on_infiniband_only_ports_of_one_subnet_are_tried() {
        let rails = ["fec0::1", "fec0:0:0:1::1"].map(|gid| {
            let mut choice = choice(0, gid, FLAG_NEAR);
            choice.named.flags = FLAG_NEAR;
            choice
        });
        let theirs = ["fec0:0:0:1::2", "fec0::2"].map(|gid| {
            let mut named = choice(0, gid, 0).named;
            named.flags = 0;
            named
        });
        let tried: Vec<_> = pairs(&rails, &theirs)
            .iter()
            .map(|(own, at)| (own.gid.raw, *at))
            .collect();
        assert_eq!(tried, [(rails[0].gid.raw, 1), (rails[1].gid.raw, 0)]);
    }

    #[test]
    fn lists_of_cpus_are_read() {
        let cpus = |list| cpus_parse(list).map(Vec::from_iter);
        assert_eq!(cpus("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cpus("5"), Some(vec![5]));
        assert_eq!(cpus("\n"), None);
        assert_eq!(cpus("a-b"), None);
    }
}
