//! How each subject is started, with the settings that make it use the transport.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Options;
use crate::figures::{Results, STEADY_SHARE};
use crate::parse::{self, Pair};
use crate::plan::{Measure, Subject, Transport};
use crate::processes::{Floor, Job, SharedFile, port_free, served};

/// What iceoryx2 is built from.
const ICEORYX2_LOCK: &str = include_str!("../../../peers/iceoryx2/Cargo.lock");
/// Milliseconds for which iceoryx2's program measures.
const ICEORYX2_MS: u32 = 30;

/// All that is needed to start a subject.
pub struct Bench {
    folder: PathBuf,
    praas: PathBuf,
    commit: String,
    cpus: [usize; 2],
    pairs: usize,
    starts: u32,
    runs: u32,
    deadline: Duration,
    /// The machine's load before anything was started.
    load: String,
}

/// A file of /proc, or nothing.
fn file_read(file: &str) -> String {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What a subject says in one run.
type Told = Result<(Option<String>, Vec<(Measure, Vec<Pair>)>), String>;

impl Bench {
    /// From the options.
    ///
    /// # Errors
    /// What should have been built is not there.
    pub fn new(options: &Options) -> Result<Self, String> {
        let folder = std::path::absolute(&options.folder).map_err(|error| error.to_string())?;
        let praas = std::path::absolute(&options.praas).map_err(|error| error.to_string())?;
        let floor = folder.join("bin/floor");
        if !floor.exists() {
            return Err(format!(
                "{} is not there: use benches/peers/run",
                floor.display()
            ));
        }
        Ok(Self {
            folder,
            praas,
            commit: options.commit.clone(),
            cpus: [options.pin.0, options.pin.1],
            pairs: options.pairs as usize,
            starts: options.starts,
            runs: options.runs,
            deadline: Duration::from_secs(options.timeout_s.into()),
            load: file_read("/proc/loadavg"),
        })
    }

    /// Machine, kernel, CPUs, commit and how much was run.
    pub fn heading(&self) -> Vec<(&'static str, String)> {
        let cpuinfo = file_read("/proc/cpuinfo");
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let model = fields.find(|(key, _)| key.trim() == "model name");
        let machine = model.map_or(std::env::consts::ARCH, |(_, value)| value.trim());
        vec![
            ("machine", machine.to_owned()),
            ("kernel", file_read("/proc/sys/kernel/osrelease")),
            ("cpus", format!("{},{}", self.cpus[0], self.cpus[1])),
            ("commit", self.commit.clone()),
            ("runs", self.runs.to_string()),
            ("load", self.load.clone()),
        ]
    }

    /// The floor of a transport, ready to be asked.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn floor(&self, transport: Transport) -> Result<Floor, String> {
        Floor::start(&self.bin("floor"), transport, self.cpus, self.deadline)
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// What installing put down as its failure.
    fn install_failure(&self, subject: Subject) -> Option<String> {
        let file = self.folder.join(format!("{subject}.failed"));
        let why = std::fs::read_to_string(file).ok()?;
        Some(format!("not installed: {}", parse::excerpt(&why)))
    }

    /// Runs a subject once, all of its measures, and takes down what it says.
    pub fn measure(
        &self,
        subject: Subject,
        transport: Transport,
        run: u32,
        floor: &mut Floor,
        results: &mut Results,
    ) {
        let measures: Vec<Measure> = subject.measures(transport).collect();
        let mut fail = |measures: &[Measure], why: &str| {
            eprintln!("  failed: {why}");
            for &measure in measures {
                results.fail((transport, measure, subject), why);
            }
        };
        if let Some(why) = self.install_failure(subject) {
            return fail(&measures, &why);
        }
        if let Some(told) = self.paired(subject, transport, &measures) {
            match told {
                Err(why) => fail(&measures, &why),
                Ok((version, found)) => {
                    let version = version.unwrap_or_default();
                    let short = version.split(',').next().unwrap_or_default();
                    results.version(subject, short);
                    for (measure, pairs) in found {
                        results.add((transport, measure, subject), run, &pairs, 0);
                    }
                }
            }
            return;
        }
        // Ours says it with its figures.
        if subject != Subject::Praas {
            match self.version(subject) {
                Ok(version) => results.version(subject, &version),
                Err(why) => return fail(&measures, &why),
            }
        }
        for measure in measures {
            let key = (transport, measure, subject);
            let told = match subject {
                Subject::Praas => self.praas(transport, measure).map(|(commit, pairs)| {
                    results.version(subject, &commit);
                    (pairs, 0)
                }),
                _ => self.bracketed(subject, transport, measure, floor),
            };
            match told {
                Ok((pairs, unsteady)) => results.add(key, run, &pairs, unsteady),
                Err(why) => {
                    eprintln!("  {measure} failed: {why}");
                    results.fail(key, &why);
                }
            }
        }
    }

    /// A subject with the floor inside, all of its measures; none if it has no floor.
    fn paired(&self, subject: Subject, transport: Transport, measures: &[Measure]) -> Option<Told> {
        match subject {
            Subject::Zeromq => Some(self.zeromq(transport, measures)),
            Subject::Openmpi
            | Subject::OpenmpiApt
            | Subject::Mpich
            | Subject::MpichApt
            | Subject::Intelmpi => Some(self.mpi(subject, transport, measures)),
            Subject::Praas
            | Subject::Ucx
            | Subject::UcxApt
            | Subject::UcxUct
            | Subject::Libfabric
            | Subject::Iceoryx2 => None,
        }
    }

    /// The floor, a program, the floor, and so on. Pairs between which the floor jumped are left
    /// out and counted.
    fn bracketed(
        &self,
        subject: Subject,
        transport: Transport,
        measure: Measure,
        floor: &mut Floor,
    ) -> Result<(Vec<Pair>, usize), String> {
        let (mut pairs, mut unsteady) = (Vec::new(), 0);
        let mut before = floor.measure(measure)?;
        for start in 0..self.starts {
            let subject_ns = match subject {
                Subject::Libfabric => self.libfabric(transport, measure)?,
                Subject::Iceoryx2 => self.iceoryx2(measure, start)?,
                _ => self.ucx(subject, transport, measure)?,
            };
            let after = floor.measure(measure)?;
            let floor_ns = (before + after) / 2.0;
            match (before - after).abs() <= STEADY_SHARE * floor_ns {
                true => pairs.push(Pair {
                    floor_ns,
                    subject_ns,
                }),
                false => unsteady += 1,
            }
            before = after;
        }
        Ok((pairs, unsteady))
    }

    fn version(&self, subject: Subject) -> Result<String, String> {
        let first = |output: String| {
            let line = output.lines().next().unwrap_or_default();
            line.rsplit(' ').next().unwrap_or(line).to_owned()
        };
        match subject {
            Subject::Libfabric => Job::new("fi_info")
                .word("--version")
                .run(self.deadline)
                .map(first),
            Subject::Iceoryx2 => {
                let mut lines = ICEORYX2_LOCK.lines();
                lines.find(|line| *line == "name = \"iceoryx2\"");
                let version = lines.next().and_then(|line| line.split('"').nth(1));
                version
                    .map(str::to_owned)
                    .ok_or_else(|| "no version in Cargo.lock".into())
            }
            _ => self
                .ucx_job(subject, "ucx_info")
                .word("-v")
                .run(self.deadline)
                .map(first),
        }
    }

    /// Ours has its own floor inside.
    fn praas(&self, transport: Transport, measure: Measure) -> Result<(String, Vec<Pair>), String> {
        let [one, two] = self.cpus;
        let (mut pairs, mut built) = (Vec::new(), String::new());
        for _ in 0..self.starts {
            // Blocks of three milliseconds, as many of each as the others have pairs.
            let (bytes, runs) = (measure.bytes().to_string(), self.pairs.to_string());
            let job = Job::new(&self.praas)
                .words(["--json", "bench", measure.name(), "--bytes", &bytes])
                .words(["--transport", transport.name(), "--runs", &runs])
                .words(["--pin", &format!("{one},{two}")]);
            let job = match measure {
                // No invocations.
                Measure::Latency => job.words(["--what", "floor,channel"]),
                _ => job.words(["--window", &measure.window().to_string()]),
            };
            let output = job.run(self.deadline)?;
            let (pair, commit) = parse::praas(&output, transport, measure)?;
            pairs.push(pair);
            built = commit;
        }
        Ok((built, pairs))
    }

    /// A program of UCX: which one, and where it is.
    fn ucx_job(&self, subject: Subject, program: &str) -> Job {
        if subject == Subject::UcxApt {
            return Job::new(Path::new("/usr/bin").join(program));
        }
        let root = self.folder.join("ucx");
        Job::new(root.join("bin").join(program)).variable("LD_LIBRARY_PATH", root.join("lib"))
    }

    fn ucx(&self, subject: Subject, transport: Transport, measure: Measure) -> Result<f64, String> {
        let port = port_free()?;
        let test = match (subject, measure) {
            (Subject::UcxUct, Measure::Latency) => "am_lat",
            (Subject::UcxUct, _) => "am_bw",
            (_, Measure::Latency) => "tag_lat",
            _ => "tag_bw",
        };
        let count = match (transport, measure) {
            (Transport::Shm, Measure::Latency) => 100_000,
            (Transport::Shm, Measure::Rate) => 1_000_000,
            (_, Measure::Latency) => 5_000,
            (_, Measure::Rate) => 100_000,
            (_, Measure::Bandwidth(bytes)) => (256 << 20) / bytes,
        };
        let side = |side: usize| {
            let mut job = Job::on(self.cpus[side])
                .job(self.ucx_job(subject, "ucx_perftest"))
                .words(["-v", "-f", "-t", test, "-s", &measure.bytes().to_string()])
                .words(["-n", &count.to_string(), "-w", &(count / 10).to_string()])
                .words(["-p", &port.to_string()]);
            if subject == Subject::UcxUct {
                job = job.words(["-d", "memory", "-x", "posix", "-D", "short"]);
            }
            match transport {
                Transport::Tcp => job
                    .variable("UCX_TLS", "tcp,self")
                    .variable("UCX_NET_DEVICES", "lo"),
                _ => job.variable("UCX_TLS", "sm,self"),
            }
        };
        let output = served(&side(1), port, &side(0).word("127.0.0.1"), self.deadline)?;
        parse::ucx_perftest(&output, measure)
    }

    fn libfabric(&self, transport: Transport, measure: Measure) -> Result<f64, String> {
        let port = port_free()?.to_string();
        let count = match (transport, measure) {
            (Transport::Shm, Measure::Latency) => 50_000,
            (_, Measure::Latency) => 5_000,
            (_, measure) => (128 << 20) / measure.bytes(),
        };
        let side = |side: usize| {
            let job = Job::on(self.cpus[side])
                .word("fi_pingpong")
                .words(["-e", "rdm", "-S", &measure.bytes().to_string()])
                .words(["-I", &count.to_string()]);
            match transport {
                Transport::Tcp => job.words(["-p", "tcp;ofi_rxm", "-d", "lo"]),
                _ => job.words(["-p", "shm"]),
            }
        };
        let server = side(1).words(["-B", &port]);
        let client = side(0).words(["-P", &port, "127.0.0.1"]);
        let number = port.parse().map_err(|_| format!("{port} is no port"))?;
        let output = served(&server, number, &client, self.deadline)?;
        parse::fi_pingpong(&output, measure)
    }

    fn iceoryx2(&self, measure: Measure, start: u32) -> Result<f64, String> {
        // A name is never used again: what is left of an earlier pair would be met.
        let name = format!(
            "peers-{}-{measure}-{start}-{}",
            std::process::id(),
            port_free()?
        );
        let side = |side: usize| {
            Job::on(self.cpus[side])
                .word(self.bin("iceoryx2"))
                .word(side.to_string())
                .word(self.folder.join("iceoryx2-files"))
                .words([&name, measure.name(), &measure.bytes().to_string()])
                .word(ICEORYX2_MS.to_string())
        };
        let follower = side(1).start(self.deadline)?;
        let output = side(0).run(self.deadline)?;
        follower.finish()?;
        parse::figure(&output)
    }

    /// What follows the side among the arguments of a program of `pair.c`.
    fn pair_words(&self, file: &SharedFile, transport: Transport, measures: &[Measure]) -> Job {
        Job::default()
            .word(file.path())
            .words([transport.name(), &self.pairs.to_string()])
            .words(measures.iter().map(Measure::to_string))
    }

    fn told(&self, output: &str, measures: &[Measure]) -> Told {
        let (version, found) = parse::pairs(output, measures, self.pairs)?;
        Ok((version, measures.iter().copied().zip(found).collect()))
    }

    fn zeromq(&self, transport: Transport, measures: &[Measure]) -> Told {
        let file = SharedFile::new("zeromq")?;
        let address = match transport {
            Transport::Unix => format!("ipc://@praas-peers-{}", std::process::id()),
            _ => format!("tcp://127.0.0.1:{}", port_free()?),
        };
        let side = |side: usize| {
            Job::on(self.cpus[side])
                .word(self.bin("zeromq"))
                .word(side.to_string())
                .job(self.pair_words(&file, transport, measures))
                .variable("PEERS_ZEROMQ", &address)
        };
        let follower = side(1).start(self.deadline)?;
        let output = side(0).run(self.deadline)?;
        follower.finish()?;
        self.told(&output, measures)
    }

    fn mpi(&self, subject: Subject, transport: Transport, measures: &[Measure]) -> Told {
        let file = SharedFile::new(subject.name())?;
        let rank = |side: usize| {
            Job::new("-n")
                .word("1")
                .job(Job::on(self.cpus[side]))
                .word(self.mpi_program(subject))
                .job(self.pair_words(&file, transport, measures))
        };
        let job = self
            .mpi_launcher(subject, transport)
            .job(rank(0))
            .word(":")
            .job(rank(1));
        let output = job.run(self.deadline)?;
        let told = self.told(&output, measures)?;
        // One MPI's program may run with another one's library, if that is what is found.
        let wanted = match subject {
            Subject::Openmpi => "Open MPI v5",
            Subject::OpenmpiApt => "Open MPI v4",
            Subject::Intelmpi => "Intel(R) MPI",
            _ => "MPICH",
        };
        match told.0.as_deref() {
            Some(version) if version.starts_with(wanted) => Ok(told),
            version => Err(format!("it ran with {}", version.unwrap_or("no MPI"))),
        }
    }

    fn mpi_program(&self, subject: Subject) -> PathBuf {
        // Intel's library has MPICH's binary interface.
        self.bin(match subject {
            Subject::Intelmpi => "mpi-mpich",
            Subject::Mpich => "mpi-mpich",
            Subject::MpichApt => "mpi-mpich-apt",
            Subject::Openmpi => "mpi-openmpi",
            _ => "mpi-openmpi-apt",
        })
    }

    fn mpi_launcher(&self, subject: Subject, transport: Transport) -> Job {
        let tcp = transport == Transport::Tcp;
        let venv = self.folder.join(format!("venv-{subject}"));
        match subject {
            Subject::Openmpi | Subject::OpenmpiApt => {
                let (program, memory) = match subject {
                    Subject::Openmpi => (venv.join("bin/mpiexec"), "sm,self"),
                    _ => ("/usr/bin/mpiexec.openmpi".into(), "vader,self"),
                };
                Job::new(program)
                    .words(["--bind-to", "none", "--mca", "pml", "ob1", "--mca", "btl"])
                    .word(if tcp { "tcp,self" } else { memory })
                    .words(["--mca", "btl_tcp_if_include", "lo"])
                    .variable("OMPI_ALLOW_RUN_AS_ROOT", "1")
                    .variable("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            }
            Subject::MpichApt => {
                let job = Job::new("/usr/bin/mpiexec.mpich");
                match tcp {
                    // Each alone still goes through shared memory.
                    true => job
                        .variable("MPIR_CVAR_NOLOCAL", "1")
                        .variable("UCX_TLS", "tcp,self")
                        .variable("UCX_NET_DEVICES", "lo"),
                    false => job,
                }
            }
            Subject::Intelmpi => {
                let job = Job::new(venv.join("bin/mpiexec.hydra"))
                    .variable("LD_LIBRARY_PATH", venv.join("lib"))
                    .variable("I_MPI_ROOT", &venv)
                    // It would put both sides where it likes.
                    .variable("I_MPI_PIN", "0");
                match tcp {
                    true => job
                        .variable("I_MPI_FABRICS", "ofi")
                        .variable("FI_PROVIDER", "tcp")
                        .variable("FI_TCP_IFACE", "lo"),
                    false => job.variable("I_MPI_FABRICS", "shm"),
                }
            }
            _ => {
                let job = Job::new(venv.join("bin/mpiexec"));
                match tcp {
                    true => job
                        .variable("MPIR_CVAR_NOLOCAL", "1")
                        .variable("MPIR_CVAR_CH4_NETMOD", "ofi")
                        .variable("MPICH_CH4_NETMOD", "ofi")
                        .variable("FI_PROVIDER", "tcp")
                        .variable("FI_TCP_IFACE", "lo"),
                    false => job,
                }
            }
        }
    }
}
