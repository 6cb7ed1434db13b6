//! The sum of the gradients of shards.
//!
//! Floating-point addition is not associative, so a sum has the same bits everywhere only if its order is fixed. Here it
//! is a binary tree over the numbers of the shards:
//!
//! ```text
//! ((g₀ + g₁) + (g₂ + g₃)) + ((g₄ + g₅) + (g₆ + g₇))
//! ```
//!
//! Any aligned block of 2ⁱ shards is a subtree, so a rank that computes such a block can sum it alone.

use pauc_distributed::{Communicator, bytes_of, bytes_of_mut};
use pauc_models::device::NetworkDevice;
use pauc_traits::param::clear_gradients;
use pauc_traits::{Compute, Param, Result};

/// One buffer for each parameter.
type Gradients<D> = Vec<<D as Compute>::Buffer>;

/// Sums the gradients of shards as they are completed. It holds at most log₂(shards) + 1 gradients.
pub(crate) struct GradientTree<D: NetworkDevice> {
    /// The gradients from before the first shard: those of earlier batches of the same step.
    before: Option<Gradients<D>>,
    /// Entry i is the sum of the last 2ⁱ shards, if the number of shards taken has bit i.
    subtrees: Vec<Option<Gradients<D>>>,
    /// Memory for reuse.
    spare: Vec<Gradients<D>>,
    /// Connections between the devices of the ranks: `None` before they are tried, `Some(None)` if there are none.
    peers: Option<Option<D::Peers>>,
}

impl<D: NetworkDevice> Default for GradientTree<D> {
    fn default() -> Self {
        GradientTree { before: None, subtrees: Vec::new(), spare: Vec::new(), peers: None }
    }
}

impl<D: NetworkDevice> GradientTree<D> {
    /// Sets the present gradients of the parameters aside and clears them for the first shard. `is_first`: whether they
    /// are zero, because this is the first batch of the step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin(&mut self, device: &D, parameters: &[Param<D>], is_first: bool) -> Result<()> {
        // A step that failed may have left some.
        self.spare.extend(self.subtrees.drain(..).flatten().chain(self.before.take()));
        if !is_first {
            self.before = Some(self.replace(device, parameters)?);
        }
        Ok(())
    }

    /// Takes the complete gradient of the next shard, and clears the parameters' gradients for the one after it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take(&mut self, device: &D, parameters: &[Param<D>]) -> Result<()> {
        let mut sum = self.replace(device, parameters)?;
        for i in 0.. {
            if i == self.subtrees.len() {
                self.subtrees.push(None);
            }
            let Some(mut earlier) = self.subtrees[i].take() else {
                self.subtrees[i] = Some(sum);
                break;
            };
            add(device, &mut earlier, &sum)?;
            self.spare.push(std::mem::replace(&mut sum, earlier));
        }
        Ok(())
    }

    /// Makes the sum of the shards of all ranks, and of the earlier batches, the gradients of the parameters. Each rank
    /// has taken an aligned block of the shards.
    ///
    /// # Errors
    /// If the device or another rank fails.
    pub fn finish(&mut self, device: &D, parameters: &[Param<D>], ranks: &dyn Communicator) -> Result<()> {
        let mut subtrees = self.subtrees.iter_mut().filter_map(Option::take);
        let Some(mut sum) = subtrees.next() else { return Ok(()) };
        // Of a power of two, there is only one.
        for mut earlier in subtrees {
            add(device, &mut earlier, &sum)?;
            self.spare.push(std::mem::replace(&mut sum, earlier));
        }
        if ranks.size() > 1 {
            if self.peers.is_none() {
                let gather = |own: &[u8]| Ok(ranks.all_gather_messages(own)?);
                self.peers = Some(device.connect(ranks.rank(), &gather)?);
            }
            match &self.peers {
                Some(Some(peers)) => device.sum_over_peers(peers, &mut sum)?,
                _ => sum_over_ranks(device, &mut sum, ranks)?,
            }
        }
        if let Some(mut before) = self.before.take() {
            add(device, &mut before, &sum)?;
            self.spare.push(std::mem::replace(&mut sum, before));
        }
        swap(&mut sum, parameters);
        self.spare.push(sum);
        Ok(())
    }

    /// Replaces the gradients of the parameters by zeros, and returns them.
    fn replace(&mut self, device: &D, parameters: &[Param<D>]) -> Result<Gradients<D>> {
        let mut gradients = match self.spare.pop() {
            Some(spare) => spare,
            None => parameters.iter().map(|p| device.zero_buffer(p.len())).collect::<Result<_>>()?,
        };
        swap(&mut gradients, parameters);
        clear_gradients(device, parameters)?;
        Ok(gradients)
    }
}

/// Swaps gradients with those of the parameters.
fn swap<D: Compute>(gradients: &mut Gradients<D>, parameters: &[Param<D>]) {
    for (gradient, p) in gradients.iter_mut().zip(parameters) {
        std::mem::swap(gradient, &mut *p.grad_mut());
    }
}

fn add<D: Compute>(device: &D, to: &mut Gradients<D>, summand: &Gradients<D>) -> Result<()> {
    to.iter_mut().zip(summand).try_for_each(|(to, summand)| device.add_buffer(to, summand))
}

/// Replaces the sum of this rank's shards by the sum over all ranks. Each rank sums one slice of the gradient, in the
/// upper levels of the tree; then the slices are gathered.
fn sum_over_ranks<D: Compute>(device: &D, sum: &mut Gradients<D>, ranks: &dyn Communicator) -> Result<()> {
    let size = ranks.size();
    let len: usize = sum.iter().map(|buffer| device.buffer_len(buffer)).sum();
    let slice = len.div_ceil(size);
    let mut all = Vec::with_capacity(slice * size);
    for buffer in sum.iter() {
        all.extend(device.download(buffer)?);
    }
    all.resize(slice * size, 0.0);
    let mut slices = vec![0.0; slice * size];
    ranks.exchange(bytes_of(&all), bytes_of_mut(&mut slices))?;
    sum_by_halves(&mut slices, slice);
    ranks.all_gather(bytes_of(&slices[..slice]), bytes_of_mut(&mut all))?;
    let mut rest = &all[..];
    for buffer in sum {
        let (values, after) = rest.split_at(device.buffer_len(buffer));
        device.overwrite(buffer, values)?;
        rest = after;
    }
    Ok(())
}

/// Sums parts of equal length in a binary tree, into the first of them.
fn sum_by_halves(parts: &mut [f32], len: usize) {
    let mut distance = len;
    while (1..parts.len()).contains(&distance) {
        for pair in parts.chunks_mut(2 * distance) {
            let (first, second) = pair.split_at_mut(distance.min(pair.len()));
            first.iter_mut().zip(second).take(len).for_each(|(to, summand)| *to += *summand);
        }
        distance *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;
    use pauc_distributed::{Alone, Threads};
    use pauc_traits::param::Role;
    use pauc_traits::rng::{Purpose, stream};
    use rand::Rng;

    /// Sums shards by halves, as the definition says.
    fn by_halves(shards: &[f32]) -> f32 {
        match shards {
            [one] => *one,
            all => {
                let (first, second) = all.split_at(all.len() / 2);
                by_halves(first) + by_halves(second)
            }
        }
    }

    #[test]
    fn shards_are_summed_by_halves_in_every_step() {
        let device = Cpu::default();
        let sizes = [3usize, 1, 5];
        let parameters: Vec<Param<Cpu>> = sizes
            .iter()
            .map(|n| Param::new(&device, format!("{n}"), &[*n], Role::Weight, &vec![0.0; *n]).unwrap())
            .collect();
        let mut tree = GradientTree::default();
        let mut rng = stream(3, Purpose::Init, 0, 0, 0);
        for shards in [1usize, 2, 4, 8, 16] {
            clear_gradients(&device, &parameters).unwrap();
            let mut expected = vec![0.0f32; sizes.iter().sum()];
            // Two accumulated batches.
            for batch in 0..2 {
                let mut drawn = vec![Vec::new(); expected.len()];
                tree.begin(&device, &parameters, batch == 0).unwrap();
                for _ in 0..shards {
                    let gradients = parameters.iter().map(Param::grad_mut);
                    for (mut gradient, offset) in gradients.zip([0, 3, 4]) {
                        for (i, g) in gradient.iter_mut().enumerate() {
                            assert_eq!(*g, 0.0);
                            // Of very different sizes, so that every other order gives other bits.
                            *g = rng.gen_range(-1.0..1.0f32) * 10f32.powi(rng.gen_range(-3..4));
                            drawn[offset + i].push(*g);
                        }
                    }
                    tree.take(&device, &parameters).unwrap();
                }
                tree.finish(&device, &parameters, &Alone).unwrap();
                for (sum, drawn) in expected.iter_mut().zip(&drawn) {
                    *sum = if batch == 0 { by_halves(drawn) } else { *sum + by_halves(drawn) };
                }
            }
            let found: Vec<f32> = parameters.iter().flat_map(|p| p.grad().clone()).collect();
            assert_eq!(found, expected, "{shards} shards");
            let buffers = shards.ilog2() as usize + 2;
            assert!(tree.spare.len() <= buffers, "{shards} shards took {} buffers", tree.spare.len());
        }
    }

    #[test]
    fn ranks_sum_their_blocks_to_the_same_bits() {
        // Seven values, so that slices of two and four ranks have other sizes.
        let gradient = |shard: usize, i: usize| {
            let mut rng = stream(4, Purpose::Init, shard as u64, i as u64, 0);
            rng.gen_range(-1.0..1.0f32) * 10f32.powi(rng.gen_range(-3..4))
        };
        let expected: Vec<f32> =
            (0..7).map(|i| by_halves(&(0..8).map(|shard| gradient(shard, i)).collect::<Vec<_>>())).collect();
        for size in [1, 2, 4, 8] {
            let sums = Threads::run(size, |ranks| {
                let device = Cpu::default();
                let parameters = [Param::new(&device, "w", &[7], Role::Weight, &[0.0; 7])?];
                let mut tree = GradientTree::default();
                tree.begin(&device, &parameters, true)?;
                for shard in crate::ranks::share(8, ranks.rank(), size) {
                    parameters[0]
                        .grad_mut()
                        .copy_from_slice(&[0, 1, 2, 3, 4, 5, 6].map(|i| gradient(shard, i)));
                    tree.take(&device, &parameters)?;
                }
                tree.finish(&device, &parameters, &ranks)?;
                let sum = parameters[0].grad().clone();
                Ok::<_, pauc_traits::Error>(sum)
            });
            for sum in sums {
                assert_eq!(sum.unwrap(), expected, "{size} ranks");
            }
        }
    }
}
