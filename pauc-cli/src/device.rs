//! The device that `--device` names.

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

/// Work that any device can do. Devices are types, so that a closure cannot stand for it.
pub trait DeviceJob {
    /// Does it.
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure>;
}

/// Does work on the device of that name.
pub fn run_on(name: &str, job: impl DeviceJob) -> Result<ExitCode, Failure> {
    match parse(name)? {
        Name::Cpu => job.run_on(&Cpu::default()),
        Name::Cuda(number) => cuda::run_on(number, job),
    }
}

/// Whether there is a device of that name.
pub fn check(name: &str) -> Result<(), Failure> {
    match parse(name)? {
        Name::Cpu => Ok(()),
        Name::Cuda(number) => cuda::check(number),
    }
}

/// A CUDA device as `devices` shows it.
pub struct CudaDevice {
    /// Its line.
    pub line: String,
    /// The same as JSON.
    pub json: serde_json::Value,
}

/// The CUDA devices of this machine.
pub struct CudaDevices {
    /// Those that this build can use.
    pub usable: Vec<CudaDevice>,
    /// Why there are none.
    pub unavailable: Option<String>,
}

/// The CUDA devices that this build can use, or why it can use none.
pub fn cuda_devices() -> CudaDevices {
    cuda::list()
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{CudaDevice, CudaDevices, DeviceJob};
    use crate::Failure;
    use pauc::cuda::{Gpu, Unavailable, gpus, open};
    use std::process::ExitCode;

    fn failure(e: Unavailable) -> Failure {
        Failure::new(1, format!("error: {e}; `--device cpu` goes on without"))
    }

    pub fn run_on(number: usize, job: impl DeviceJob) -> Result<ExitCode, Failure> {
        job.run_on(&open(number).map_err(failure)?)
    }

    pub fn check(number: usize) -> Result<(), Failure> {
        open(number).map(|_| ()).map_err(failure)
    }

    pub fn list() -> CudaDevices {
        match gpus() {
            Ok(found) => CudaDevices { usable: found.iter().map(describe).collect(), unavailable: None },
            Err(e) => CudaDevices { usable: Vec::new(), unavailable: Some(e.to_string()) },
        }
    }

    fn describe(g: &Gpu) -> CudaDevice {
        let (major, minor) = g.capability;
        let gib = g.memory as f64 / (1u64 << 30) as f64;
        let device = format!("cuda:{}", g.number);
        let line = format!("{device:<7} {}, {gib:.1} GiB, compute capability {major}.{minor}", g.name);
        let json = serde_json::json!({
            "device": device, "name": g.name, "memory_bytes": g.memory,
            "compute_capability": format!("{major}.{minor}"),
        });
        CudaDevice { line, json }
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{CudaDevices, DeviceJob};
    use crate::Failure;
    use std::process::ExitCode;

    const WHY: &str = "this program was built without it; \
        `cargo build --release -p pauc-cli --features cuda` builds it with";

    pub fn run_on(_: usize, _: impl DeviceJob) -> Result<ExitCode, Failure> {
        check(0).map(|()| ExitCode::SUCCESS)
    }

    pub fn check(_: usize) -> Result<(), Failure> {
        Err(Failure::new(1, format!("error: no CUDA: {WHY}; `--device cpu` goes on without")))
    }

    pub fn list() -> CudaDevices {
        CudaDevices { usable: Vec::new(), unavailable: Some(WHY.into()) }
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
