//! The device that `--device` names.

use crate::Failure;
use pauc::dfdx::prelude::Cpu;
use pauc::models::NetworkDevice;
use std::process::ExitCode;

/// A parsed device name.
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
        Failure::new(2, format!("error: unknown device `{name}`; expected cpu, cuda, cuda:0, cuda:1, …"))
    })
}

/// Work that any device can do. A trait rather than a closure, because each device is a type.
pub trait DeviceJob {
    /// Does the work.
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure>;
}

/// Runs a job on the named device.
pub fn run_on(name: &str, job: impl DeviceJob) -> Result<ExitCode, Failure> {
    match parse(name)? {
        Name::Cpu => job.run_on(&Cpu::default()),
        Name::Cuda(number) => cuda::run_on(number, job),
    }
}

/// Checks that the named device exists.
pub fn check(name: &str) -> Result<(), Failure> {
    match parse(name)? {
        Name::Cpu => Ok(()),
        Name::Cuda(number) => cuda::check(number),
    }
}

/// Returns the device of a rank, given its number on this machine. With `cuda`, each rank has a GPU of its own, if
/// there are enough of them.
pub fn of_rank(name: &str, local_rank: usize) -> String {
    if name != "cuda" {
        return name.into();
    }
    let count = cuda::list().usable.len().max(1);
    format!("cuda:{}", local_rank % count)
}

/// What tells a device from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The model, on which the rounding of results depends.
    pub model: String,
    /// The UUID of a GPU; empty for a CPU.
    pub unique: Vec<u8>,
}

/// Returns the identity of the named device.
pub fn identity(name: &str) -> Result<Identity, Failure> {
    match parse(name)? {
        Name::Cpu => Ok(Identity { model: "cpu".into(), unique: Vec::new() }),
        Name::Cuda(number) => cuda::identity(number),
    }
}

/// Warns if the GPUs of several ranks cannot exchange numbers directly.
pub fn warn_of_missing_transfers() {
    cuda::warn_of_missing_transfers();
}

/// A CUDA device, as `devices` prints it.
pub struct CudaDevice {
    /// The line of the table.
    pub line: String,
    /// The same as JSON.
    pub json: serde_json::Value,
}

/// The CUDA devices of this machine.
pub struct CudaDevices {
    /// The devices that this build can use.
    pub usable: Vec<CudaDevice>,
    /// Why there are none.
    pub unavailable: Option<String>,
}

/// Returns the CUDA devices that this build can use, or why it can use none.
pub fn cuda_devices() -> CudaDevices {
    cuda::list()
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{CudaDevice, CudaDevices, DeviceJob, Identity};
    use crate::Failure;
    use pauc::cuda::{Context, Gpu, Unavailable, gpus, open, unique_number};
    use std::process::ExitCode;

    fn failure(e: Unavailable) -> Failure {
        Failure::new(1, format!("error: {e}; use `--device cpu` to run without CUDA"))
    }

    pub fn run_on(number: usize, job: impl DeviceJob) -> Result<ExitCode, Failure> {
        job.run_on(&open(number).map_err(failure)?)
    }

    pub fn check(number: usize) -> Result<(), Failure> {
        open(number).map(|_| ()).map_err(failure)
    }

    pub fn warn_of_missing_transfers() {
        let nccl = &pauc::cuda::library::NCCL;
        if let Some(problem) = nccl.problem() {
            errln!(
                "warning: {} is missing ({problem}), so gradients pass through the memory of the host: {}",
                nccl.name,
                nccl.remedy
            );
        }
    }

    pub fn identity(number: usize) -> Result<Identity, Failure> {
        let device = open(number).map_err(failure)?;
        let unique = Context::of(&device).and_then(|on| unique_number(&on));
        let unique = unique.map_err(|error| failure(Unavailable::Device { number, error }))?;
        let gpu = gpus().map_err(failure)?.into_iter().find(|gpu| gpu.number == number);
        Ok(Identity { model: gpu.map(|gpu| gpu.name).unwrap_or_default(), unique: unique.to_vec() })
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
    use super::{CudaDevices, DeviceJob, Identity};
    use crate::Failure;
    use std::process::ExitCode;

    const WHY: &str = "this program was built without it; \
        build it with `cargo build --release -p pauc-cli --features cuda`";

    pub fn run_on(_: usize, _: impl DeviceJob) -> Result<ExitCode, Failure> {
        check(0).map(|()| ExitCode::SUCCESS)
    }

    pub fn check(_: usize) -> Result<(), Failure> {
        Err(Failure::new(1, format!("error: no CUDA: {WHY}, or use `--device cpu`")))
    }

    pub fn warn_of_missing_transfers() {}

    pub fn identity(_: usize) -> Result<Identity, Failure> {
        check(0).map(|()| Identity::default())
    }

    pub fn list() -> CudaDevices {
        CudaDevices { usable: Vec::new(), unavailable: Some(WHY.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_devices_of_their_own_unless_a_number_is_given() {
        assert_eq!((of_rank("cpu", 3), of_rank("cuda:2", 3)), ("cpu".into(), "cuda:2".into()));
        let count = cuda_devices().usable.len().max(1);
        assert_eq!(of_rank("cuda", 5), format!("cuda:{}", 5 % count));
        let cpu = identity("cpu").unwrap();
        assert_eq!((&*cpu.model, cpu.unique.len()), ("cpu", 0));
    }

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
