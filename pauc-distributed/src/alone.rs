//! A single process.

use crate::{Communicator, Result, check_exchange, check_gather, check_root, check_shift};

/// The communicator of a process that trains alone: rank 0 of 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_gather(1, own.len(), all.len())?;
        all.copy_from_slice(own);
        Ok(())
    }

    fn exchange(&self, to_each: &[u8], from_each: &mut [u8]) -> Result<()> {
        check_exchange(1, to_each.len(), from_each.len())?;
        from_each.copy_from_slice(to_each);
        Ok(())
    }

    fn shift(&self, to_next: &[u8], from_previous: &mut [u8]) -> Result<()> {
        check_shift(to_next.len(), from_previous.len())?;
        from_previous.copy_from_slice(to_next);
        Ok(())
    }

    fn broadcast(&self, _: &mut [u8], from: usize) -> Result<()> {
        check_root(1, from)
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    /// Ends the process.
    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_alone_gets_what_it_sends() {
        for n in [0, 1, 100] {
            crate::tests::exercise(&Alone, n).unwrap();
        }
        assert!(Alone.all_gather(&[1], &mut []).is_err() && Alone.broadcast(&mut [], 1).is_err());
    }
}
