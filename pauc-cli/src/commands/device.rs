//! The device of a `--device` argument, and `devices`.

use crate::Failure;
use pauc::dfdx::prelude::Cpu;
use pauc::models::NetworkDevice;
use std::process::ExitCode;

/// A device's name, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Cpu,
    Cuda(usize),
}

fn parse(name: &str) -> Result<Name, Failure> {
    let number = match name {
        "cpu" => return Ok(Name::Cpu),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    number.map(Name::Cuda).ok_or_else(|| {
        Failure::new(2, format!("error: unknown device `{name}`: devices are called cpu, cuda:0, cuda:1, …"))
    })
}

/// Work that any device can do.
pub(super) trait Job {
    /// Does it.
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure>;
}

/// Does work on the device of that name.
pub(super) fn on(name: &str, job: impl Job) -> Result<ExitCode, Failure> {
    match parse(name)? {
        Name::Cpu => job.on(&Cpu::default()),
        Name::Cuda(number) => cuda::on(number, job),
    }
}

/// Whether there is a device of that name.
pub(super) fn check(name: &str) -> Result<(), Failure> {
    match parse(name)? {
        Name::Cpu => Ok(()),
        Name::Cuda(number) => cuda::check(number),
    }
}

/// Lists the devices of this machine that this build can use.
pub fn devices(json: bool) -> Result<ExitCode, Failure> {
    let (gpus, why) = cuda::list();
    let instructions =
        pauc::kernels::simd::Simd::detect().map_or_else(|e| e.to_string(), |s| s.name().to_string());
    let threads = rayon::current_num_threads();
    // Whoever built it with CUDA and has none wants to know; to the default build nothing is missing.
    let code = ExitCode::from(u8::from(cfg!(feature = "cuda") && why.is_some()));
    if json {
        let cpu = serde_json::json!({ "device": "cpu", "threads": threads, "instructions": instructions });
        let all: Vec<_> = std::iter::once(cpu).chain(gpus.into_iter().map(|g| g.1)).collect();
        println!("{}", serde_json::json!({ "devices": all, "cuda": why }));
        return Ok(code);
    }
    println!("cpu     {threads} thread{}, {instructions}", if threads == 1 { "" } else { "s" });
    gpus.iter().for_each(|(line, _)| println!("{line}"));
    if let Some(why) = why {
        println!("no CUDA: {why}");
    }
    Ok(code)
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Job;
    use crate::Failure;
    use pauc::cuda::{Gpu, Unavailable, gpus, open};
    use std::process::ExitCode;

    fn failure(e: Unavailable) -> Failure {
        Failure::new(1, format!("error: {e}; `--device cpu` goes on without"))
    }

    pub fn on(number: usize, job: impl Job) -> Result<ExitCode, Failure> {
        job.on(&open(number).map_err(failure)?)
    }

    pub fn check(number: usize) -> Result<(), Failure> {
        open(number).map(|_| ()).map_err(failure)
    }

    pub fn list() -> (Vec<(String, serde_json::Value)>, Option<String>) {
        let found = match gpus() {
            Ok(found) => found,
            Err(e) => return (Vec::new(), Some(e.to_string())),
        };
        let line = |g: &Gpu| {
            let (major, minor) = g.capability;
            let gib = g.memory as f64 / (1u64 << 30) as f64;
            let device = format!("cuda:{}", g.number);
            let text = format!("{device:<7} {}, {gib:.1} GiB, compute capability {major}.{minor}", g.name);
            let json = serde_json::json!({
                "device": device, "name": g.name, "memory_bytes": g.memory,
                "compute_capability": format!("{major}.{minor}"),
            });
            (text, json)
        };
        (found.iter().map(line).collect(), None)
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::Job;
    use crate::Failure;
    use std::process::ExitCode;

    const WHY: &str = "this program was built without it; `cargo build --release -p pauc-cli --features cuda` builds it with";

    pub fn on(_: usize, _: impl Job) -> Result<ExitCode, Failure> {
        check(0).map(|()| ExitCode::SUCCESS)
    }

    pub fn check(_: usize) -> Result<(), Failure> {
        Err(Failure::new(1, format!("error: no CUDA: {WHY}; `--device cpu` goes on without")))
    }

    pub fn list() -> (Vec<(String, serde_json::Value)>, Option<String>) {
        (Vec::new(), Some(WHY.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_and_numbers() {
        assert_eq!(parse("cpu").unwrap(), Name::Cpu);
        assert_eq!(parse("cuda").unwrap(), Name::Cuda(0));
        assert_eq!(parse("cuda:3").unwrap(), Name::Cuda(3));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0", ""] {
            let e = parse(wrong).unwrap_err();
            assert!(e.code == 2 && e.message.contains(&format!("`{wrong}`")), "{}", e.message);
        }
    }
}
