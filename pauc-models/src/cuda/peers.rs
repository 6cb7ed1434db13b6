//! Transfers between the GPUs of several ranks.

use crate::device::GatherMessages;
use dfdx::prelude::Cuda;
use pauc_cuda::nccl::{self, Peers, UniqueId};
use pauc_cuda::{Context, unique_number};
use pauc_traits::Result;
use pauc_traits::cuda::OnDevice;

/// Connects the GPUs of all ranks with NCCL. `None` if a rank has no NCCL, or two share a GPU, which NCCL refuses.
pub(super) fn connect(device: &Cuda, rank: usize, gather: &GatherMessages<'_>) -> Result<Option<Peers>> {
    let on = Context::of(device).on_device()?;
    let own = if nccl::is_available() { unique_number(&on).on_device()?.to_vec() } else { Vec::new() };
    let mut all = gather(&own)?;
    let ranks = all.len();
    all.sort();
    all.dedup();
    if all.len() < ranks || all.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    let own = if rank == 0 { nccl::unique_id().on_device()?.0.to_vec() } else { Vec::new() };
    let mut id = UniqueId([0; 128]);
    for (to, from) in id.0.iter_mut().zip(gather(&own)?.into_iter().flatten()) {
        *to = from;
    }
    Peers::connect(on, id, rank, ranks).on_device().map(Some)
}
