//! The node's processors: which ones this process may use, how they lie, and who gets which.
//!
//! ```text
//!   sched_getaffinity --> allowed CPUs --+
//!   /sys/devices/system/cpu/cpuN         +--> Topology --cpus_choose(count, load)--> a host's CPUs
//!   /sys/devices/system/node/nodeN ------+
//! ```
//!
//! What sysfs does not tell (containers hide parts of it) counts as one package and one NUMA node
//! of cores with one CPU each. Nothing here binds anything; `praas host` binds itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::thread::CpuSet;

/// Where Linux describes the machine.
const SYSFS: &str = "/sys/devices/system";

/// A logical CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu {
    /// The kernel's number.
    pub id: u32,
    /// The package that it lies in.
    pub package: u32,
    /// Its core: the lowest number of the CPUs that share it. SMT siblings have the same.
    pub core: u32,
    /// The NUMA node that its memory is next to.
    pub numa: u32,
}

/// The CPUs that hosts may use, by number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    cpus: Vec<Cpu>,
}

impl Topology {
    /// The CPUs that this process may use.
    pub fn read() -> Self {
        Self::read_at(Path::new(SYSFS), &cpus_allowed())
    }

    /// The `allowed` CPUs, as a directory laid out like `/sys/devices/system` describes them.
    pub fn read_at(sysfs: &Path, allowed: &[u32]) -> Self {
        let numa = numa_read(&sysfs.join("node"));
        let allowed: BTreeSet<u32> = allowed.iter().copied().collect();
        let cpu = |id: u32| {
            let topology = sysfs.join(format!("cpu/cpu{id}/topology"));
            let text = |name| std::fs::read_to_string(topology.join(name)).unwrap_or_default();
            let siblings = cpu_list_parse(&text("thread_siblings_list"));
            Cpu {
                id,
                // A virtual machine may say -1.
                package: text("physical_package_id").trim().parse().unwrap_or(0),
                core: siblings.first().copied().unwrap_or(id),
                numa: numa.get(&id).copied().unwrap_or(0),
            }
        };
        Self {
            cpus: allowed.into_iter().map(cpu).collect(),
        }
    }

    /// The CPUs, by number.
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// The CPUs for one more host that wants `count`, where `load` says how many hosts each CPU
    /// has: the least loaded ones, on one NUMA node if they fit there, a core of its own before
    /// SMT siblings. Empty, which leaves it to the kernel, if it wants none or at least as many as
    /// there are.
    pub fn cpus_choose(&self, count: usize, load: &BTreeMap<u32, u32>) -> Vec<u32> {
        if count == 0 || count >= self.cpus.len() {
            return Vec::new();
        }
        let numas: BTreeSet<u32> = self.cpus.iter().map(|cpu| cpu.numa).collect();
        let within = numas.into_iter().filter_map(|numa| {
            let cpus = self.cpus.iter().filter(|cpu| cpu.numa == numa);
            cpus_pick(&cpus.copied().collect::<Vec<_>>(), count, load)
        });
        // The first of equals, which is the lowest node.
        let best = within.min_by_key(|(cost, _)| *cost);
        let best = best.or_else(|| cpus_pick(&self.cpus, count, load));
        best.map(|(_, cpus)| cpus).unwrap_or_default()
    }

    /// The CPUs of `hosts` hosts that start on an empty node and want `cpus_each`.
    pub fn hosts_spread(&self, hosts: usize, cpus_each: usize) -> Vec<Vec<u32>> {
        let mut load = BTreeMap::new();
        let choose = |_| {
            let cpus = self.cpus_choose(cpus_each, &load);
            for cpu in &cpus {
                *load.entry(*cpu).or_default() += 1;
            }
            cpus
        };
        (0..hosts).map(choose).collect()
    }
}

/// The CPUs that this process may use, by number; never none.
pub fn cpus_allowed() -> Vec<u32> {
    let allowed = rustix::thread::sched_getaffinity(None).map(|set| {
        let cpus = 0..CpuSet::MAX_CPU;
        cpus.filter(|cpu| set.is_set(*cpu))
            .map(|cpu| cpu as u32)
            .collect::<Vec<_>>()
    });
    match allowed {
        Ok(allowed) if !allowed.is_empty() => allowed,
        // A kernel with more CPUs than the set has room for refuses.
        _ => {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            (0..count as u32).collect()
        }
    }
}

/// Takes `count` CPUs one after the other, each the one that costs least; what they cost.
fn cpus_pick(from: &[Cpu], count: usize, load: &BTreeMap<u32, u32>) -> Option<(u64, Vec<u32>)> {
    if from.len() < count {
        return None;
    }
    let hosts = |cpu: u32| u64::from(load.get(&cpu).copied().unwrap_or(0));
    let mut core_hosts: BTreeMap<u32, u64> = BTreeMap::new();
    for cpu in from {
        *core_hosts.entry(cpu.core).or_default() += hosts(cpu.id);
    }
    let mut left = from.to_vec();
    let mut picked = Vec::with_capacity(count);
    let mut cost = 0;
    for _ in 0..count {
        // A busy CPU is worse than a busy sibling.
        let weigh = |cpu: &Cpu| (hosts(cpu.id) << 20) + core_hosts.get(&cpu.core).unwrap_or(&0);
        let at = (0..left.len()).min_by_key(|at| (weigh(&left[*at]), left[*at].id))?;
        let cpu = left.remove(at);
        cost += weigh(&cpu);
        *core_hosts.entry(cpu.core).or_default() += 1;
        picked.push(cpu.id);
    }
    picked.sort_unstable();
    Some((cost, picked))
}

/// The NUMA node of each CPU.
fn numa_read(nodes: &Path) -> BTreeMap<u32, u32> {
    let mut numa = BTreeMap::new();
    for entry in std::fs::read_dir(nodes).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node"));
        let Some(number) = number.and_then(|number| number.parse().ok()) else {
            continue;
        };
        let list = std::fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
        numa.extend(cpu_list_parse(&list).into_iter().map(|cpu| (cpu, number)));
    }
    numa
}

/// A list such as `0-3,8,10-11`, in ascending order; what is no number or range is left out.
pub fn cpu_list_parse(list: &str) -> Vec<u32> {
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            // More CPUs than any kernel has are a damaged list.
            cpus.extend((first..=last).take(CpuSet::MAX_CPU));
        }
    }
    cpus.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two NUMA nodes, each one package of two cores with two CPUs: 0 4, 1 5 | 2 6, 3 7.
    fn sysfs_fake() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: String, text: String| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for cpu in 0..8u32 {
            let core = cpu % 4;
            let topology = format!("cpu/cpu{cpu}/topology");
            write(
                format!("{topology}/physical_package_id"),
                format!("{}\n", core / 2),
            );
            write(
                format!("{topology}/thread_siblings_list"),
                format!("{core},{}\n", core + 4),
            );
        }
        write("node/node0/cpulist".into(), "0-1,4-5\n".into());
        write("node/node1/cpulist".into(), "2-3,6-7\n".into());
        write("node/possible".into(), "0-1\n".into());
        dir
    }

    fn all(sysfs: &tempfile::TempDir) -> Topology {
        Topology::read_at(sysfs.path(), &[0, 1, 2, 3, 4, 5, 6, 7])
    }

    #[test]
    fn what_sysfs_says_is_read() {
        let sysfs = sysfs_fake();
        let topology = Topology::read_at(sysfs.path(), &[7, 1]);
        let expected = [(1, 0, 1, 0), (7, 1, 3, 1)];
        let expected = expected.map(|(id, package, core, numa)| Cpu {
            id,
            package,
            core,
            numa,
        });
        assert_eq!(topology.cpus(), expected);
    }

    #[test]
    fn without_sysfs_each_cpu_is_a_core() {
        let none = tempfile::tempdir().unwrap();
        let topology = Topology::read_at(none.path(), &[3, 5]);
        let cores: Vec<_> = topology.cpus().iter().map(|cpu| cpu.core).collect();
        assert_eq!(cores, [3, 5]);
        assert_eq!(topology.hosts_spread(3, 1), [[3], [5], [3]]);
    }

    #[test]
    fn hosts_get_cores_of_their_own_first() {
        let sysfs = sysfs_fake();
        let spread = all(&sysfs).hosts_spread(9, 1).concat();
        let cores: BTreeSet<u32> = spread[..4].iter().map(|cpu| cpu % 4).collect();
        assert_eq!(cores.len(), 4, "{spread:?}");
        let cpus: BTreeSet<u32> = spread[..8].iter().copied().collect();
        assert_eq!(cpus.len(), 8, "{spread:?}");
        assert_eq!(spread[8], 0);
    }

    #[test]
    fn a_host_stays_on_one_numa_node_if_it_fits() {
        let sysfs = sysfs_fake();
        let topology = all(&sysfs);
        assert_eq!(topology.hosts_spread(2, 4), [[0, 1, 4, 5], [2, 3, 6, 7]]);
        // Whole cores first.
        assert_eq!(topology.hosts_spread(2, 2), [[0, 1], [2, 3]]);
        // None fits five; all eight or none are the kernel's choice.
        assert_eq!(topology.hosts_spread(1, 5)[0].len(), 5);
        assert!(topology.cpus_choose(8, &BTreeMap::new()).is_empty());
        assert!(topology.cpus_choose(0, &BTreeMap::new()).is_empty());
    }

    #[test]
    fn lists_of_cpus_are_read_and_damage_is_left_out() {
        assert_eq!(cpu_list_parse("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(cpu_list_parse("7,x,3-1,"), [7]);
        assert!(cpu_list_parse("0-4294967295").len() <= CpuSet::MAX_CPU);
        assert!(cpu_list_parse("").is_empty());
    }

    #[test]
    fn this_process_may_use_some() {
        assert!(!cpus_allowed().is_empty());
        assert_eq!(Topology::read().cpus().len(), cpus_allowed().len());
    }
}
