//! iceoryx2 as a subject: two services of publish and subscribe, one each way.
//!
//! ```text
//!   side 0                                            side 1
//!   loan, copy the message in, send  --- SERVICE-0 --->  receive
//!            receive                 <-- SERVICE-1 ----  loan, copy, send
//! ```
//!
//! Arguments: SIDE FOLDER SERVICE MEASURE BYTES MILLISECONDS. Both sides are to be started with
//! the same ones but for SIDE, which is 0 or 1; FOLDER is for iceoryx2's own files, and SERVICE a
//! name that no other pair has had. MEASURE is latency (bytes go back and forth), bandwidth or
//! rate (side 0 sends, and the last message is answered). Side 0 prints `figure NANOSECONDS`: of
//! half a round trip, the median over batches; else of one message of the stream.
//!
//! A message is copied once, into the loaned memory, and read where it lies: the receiver looks at
//! its first byte only, which tells whether it is the last.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory as Service;

/// Messages under way, but no more than so many bytes of them: as in pair.c.
const WINDOW: usize = 64;
const WINDOW_BYTES: usize = 64 << 20;
/// Round trips timed together.
const BATCH: u32 = 16;
const LAST: u8 = 1;

type Failure = Box<dyn Error>;
type Bytes = Service<ipc::Service, [u8], ()>;

struct Side {
    publisher: Publisher<ipc::Service, [u8], ()>,
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    message: Vec<u8>,
}

impl Side {
    fn open(side: usize, folder: &str, name: &str, bytes: usize) -> Result<Self, Failure> {
        let mut config = Config::default();
        config.global.set_root_path(&Path::new(folder.as_bytes())?);
        let node = NodeBuilder::new()
            .config(&config)
            .create::<ipc::Service>()?;
        let window = WINDOW.min(WINDOW_BYTES / bytes.max(1)).max(1);
        let service = |direction: usize| -> Result<Bytes, Failure> {
            let name = format!("{name}-{direction}").as_str().try_into()?;
            let builder = node.service_builder(&name).publish_subscribe::<[u8]>();
            // Nothing may be lost: a full queue makes the sender wait.
            let service = builder
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(window)
                .history_size(0)
                .max_publishers(1)
                .max_subscribers(1)
                .open_or_create()?;
            Ok(service)
        };
        let services = [service(0)?, service(1)?];
        let publisher = services[side]
            .publisher_builder()
            .initial_max_slice_len(bytes)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let subscriber = services[1 - side].subscriber_builder().create()?;
        let mut opened = Self {
            publisher,
            subscriber,
            message: vec![0; bytes],
        };
        opened.meet(side)?;
        Ok(opened)
    }

    /// One message each way, which goes nowhere until the other side is there.
    fn meet(&mut self, side: usize) -> Result<(), Failure> {
        if side == 1 {
            self.receive()?;
        }
        while self.publish()? == 0 {
            std::thread::yield_now();
        }
        if side == 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// Returns how many receivers the message goes to.
    fn publish(&mut self) -> Result<usize, Failure> {
        let sample = self.publisher.loan_slice_uninit(self.message.len())?;
        Ok(sample.write_from_slice(&self.message).send()?)
    }

    fn send(&mut self, last: bool) -> Result<(), Failure> {
        self.message[0] = u8::from(last) * LAST;
        match self.publish()? {
            1 => Ok(()),
            receivers => Err(format!("a message went to {receivers} receivers").into()),
        }
    }

    /// Waits for a message; returns whether it was the last.
    fn receive(&self) -> Result<bool, Failure> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                let payload = sample.payload();
                if payload.len() != self.message.len() {
                    return Err(format!("a message of {} bytes came", payload.len()).into());
                }
                return Ok(payload[0] == LAST);
            }
        }
    }

    fn round_trip(&mut self, last: bool) -> Result<(), Failure> {
        self.send(last)?;
        self.receive().map(drop)
    }

    /// Nanoseconds of half a round trip.
    fn latency(&mut self, time: Duration) -> Result<f64, Failure> {
        // The first ones map what is needed.
        for _ in 0..1000 {
            self.round_trip(false)?;
        }
        let (begun, mut batches) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let from = Instant::now();
            for _ in 0..BATCH {
                self.round_trip(false)?;
            }
            batches.push(from.elapsed().as_nanos() as f64 / f64::from(2 * BATCH));
        }
        self.round_trip(true)?;
        batches.sort_unstable_by(f64::total_cmp);
        Ok(batches[batches.len() / 2])
    }

    /// Nanoseconds of one message.
    fn stream(&mut self, time: Duration) -> Result<f64, Failure> {
        for _ in 0..2 * WINDOW {
            self.send(false)?;
        }
        let (begun, mut sent) = (Instant::now(), 0u64);
        while begun.elapsed() < time {
            for _ in 0..BATCH {
                self.send(false)?;
            }
            sent += u64::from(BATCH);
        }
        self.send(true)?;
        self.receive()?;
        Ok(begun.elapsed().as_nanos() as f64 / (sent + 1) as f64)
    }

    fn answer(&mut self, each: bool) -> Result<(), Failure> {
        loop {
            let last = self.receive()?;
            if each || last {
                self.send(last)?;
            }
            if last {
                return Ok(());
            }
        }
    }
}

fn run() -> Result<(), Failure> {
    set_log_level(LogLevel::Error);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [side, folder, name, measure, bytes, milliseconds] = arguments.as_slice() else {
        return Err("usage: SIDE FOLDER SERVICE MEASURE BYTES MILLISECONDS".into());
    };
    let (bytes, time) = (bytes.parse()?, Duration::from_millis(milliseconds.parse()?));
    let of_side: usize = side.parse()?;
    if of_side > 1 || bytes == 0 {
        return Err("SIDE is 0 or 1, and BYTES at least 1".into());
    }
    let mut side = Side::open(of_side, folder, name, bytes)?;
    let figure = match (of_side, measure.as_str()) {
        (1, "latency") => return side.answer(true),
        (1, "bandwidth" | "rate") => return side.answer(false),
        (_, "latency") => side.latency(time)?,
        (_, "bandwidth" | "rate") => side.stream(time)?,
        _ => return Err(format!("{measure} is none of latency, bandwidth, rate").into()),
    };
    println!("figure {figure:.3}");
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: iceoryx2: {error}");
            ExitCode::FAILURE
        }
    }
}
