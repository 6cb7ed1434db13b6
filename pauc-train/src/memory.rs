//! The memory that a run needs, counted from its recipe before anything is allocated.

use crate::recipe::Recipe;
use pauc_data::ViewSpec;
use pauc_traits::term::Facts;
use pauc_traits::{ImageShape, NetworkSize};

/// One part of the memory of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What takes the memory.
    pub what: &'static str,
    /// Its bytes, or fewer: a lower bound, so that no run is refused that would fit.
    pub bytes: u128,
    /// The value of the recipe that it depends on most.
    pub path: &'static str,
    /// How to make it smaller.
    pub remedy: &'static str,
}

/// The sizes of a recipe's networks, for one image.
#[derive(Clone, Copy, Debug)]
pub struct NetworkSizes {
    /// The encoder.
    pub encoder: NetworkSize,
    /// The projector.
    pub projector: NetworkSize,
    /// The predictor, if there is one.
    pub predictor: Option<NetworkSize>,
}

/// Returns the parts of a run's memory, in the order of the recipe's fields. `input` is the shape of all images, if
/// they have one. `views` has one shape for each entry of the recipe's `views`. `networks` is `None` if the encoder
/// cannot be counted. `keeps_shards`: see [`keeps_shards`].
pub fn parts(
    recipe: &Recipe,
    input: Option<ImageShape>,
    views: &[ImageShape],
    networks: Option<&NetworkSizes>,
    facts: &Facts,
    keeps_shards: bool,
) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut add = |path, what, values: u128, remedy| {
        if values > 0 {
            parts.push(Part { what, bytes: values.saturating_mul(4), path, remedy });
        }
    };
    let batch = recipe.train.batch.get() as u128;
    let pixels: u128 =
        recipe.views.iter().zip(views).map(|(spec, v)| spec.count.get() as u128 * v.len() as u128).sum();
    add("views", "views of a batch", batch.saturating_mul(pixels), "use smaller views or a smaller batch");
    let (between, remedy) =
        ("images between two steps of a view", "use smaller sizes in the steps of the views");
    add("views", between, bytes_between(recipe, input).div_ceil(4), remedy);
    if let Some(NetworkSizes { encoder, projector, predictor }) = networks {
        // Values, gradients and at least one moment of the optimizer, the momentum network's copy, and the partial sums
        // of the gradients of shards.
        let sums = u128::from(recipe.train.shards.get().ilog2());
        let copies = 3 + u128::from(recipe.momentum_encoder.is_some()) + sums;
        let part = recipe.train.micro_batch.map_or(recipe.train.shard(), |m| m.get()) as u128;
        let images = if keeps_shards { batch } else { part };
        let heads = u128::from(projector.parameters) + predictor.map_or(0, |p| u128::from(p.parameters));
        let learned = "parameters of the encoder, their gradients, moments and copies";
        add("encoder", learned, copies * u128::from(encoder.parameters), "use a smaller encoder");
        let activations = images.saturating_mul(encoder.activations.into());
        add(
            "encoder",
            "activations of the encoder",
            activations,
            "lower `train.micro_batch`, or use smaller views",
        );
        let learned = "parameters of projector and predictor, their gradients, moments and copies";
        add("projector", learned, copies * heads, "use smaller widths");
        let activations = images.saturating_mul(projector.activations.into());
        add("projector", "activations of the projector", activations, "lower `train.micro_batch`");
    }
    let dim = facts.dim as u128;
    let queue = recipe.queue.map_or(0, |q| q.get() as u128);
    add("queue", "keys in the queue", dim.saturating_mul(queue), "use a shorter queue");
    if recipe.clusterer.is_some() {
        let samples = dim.saturating_mul(facts.samples as u128);
        add("clusterer", "embeddings to cluster", samples, "use narrower embeddings or fewer images");
        let prototypes = facts.prototypes.iter().flatten().map(|k| *k as u128).sum::<u128>();
        add("clusterer.k", "prototypes", dim.saturating_mul(prototypes), "use fewer prototypes");
    }
    let matrices = recipe.objective.iter().flat_map(|t| t.term.info().parameters(facts));
    let values = matrices.map(|m| (m.rows as u128).saturating_mul(m.cols as u128));
    let values = values.fold(0, u128::saturating_add);
    add("objective", "matrices that terms learn or remember", values, "use fewer prototypes in the terms");
    parts
}

/// Returns whether the activations of all shards of a batch are kept until the backward pass. Otherwise they are computed
/// twice, and only those of one shard are in memory at once. They are kept if a lower bound on what the run
/// then needs is at most half of `memory`. `parts` are those of a run that keeps them.
pub fn keeps_shards(
    recipe: &Recipe,
    parts: &[Part],
    networks: Option<&NetworkSizes>,
    memory: Option<u64>,
) -> bool {
    let train = &recipe.train;
    let (Some(networks), Some(memory)) = (networks, memory) else { return false };
    if train.shards.get() == 1 || train.micro_batch.is_some() || networks.encoder.activations == 0 {
        return false;
    }
    // The parts count the activations of one view.
    let of_image = networks.encoder.activations + networks.projector.activations;
    let others = recipe.view_count().saturating_sub(1) as u128 * train.batch.get() as u128;
    let further = others.saturating_mul(u128::from(of_image)).saturating_mul(4);
    total(parts).saturating_add(further) <= u128::from(memory / 2)
}

/// Returns the most bytes that a step of the views reads and writes for one image, as far as the shapes are known. A
/// loader thread has one such image at a time.
fn bytes_between(recipe: &Recipe, input: Option<ImageShape>) -> u128 {
    let size = |shape: Option<ImageShape>| {
        let sides = shape.map(|s| [s.height, s.width, s.channels].map(|n| n as u128));
        sides.map_or(0, |sides| sides.into_iter().fold(1, u128::saturating_mul))
    };
    let of_view = |spec: &ViewSpec| {
        let (mut shape, mut most) = (input, 0);
        for op in &spec.ops {
            // A step that does not fit is an error of the recipe, and reported as such.
            let next = op.output(shape).unwrap_or_default();
            most = size(shape).saturating_add(size(next)).max(most);
            shape = next;
        }
        most
    };
    recipe.views.iter().map(of_view).max().unwrap_or(0)
}

/// Returns the sum of all parts, in bytes.
pub fn total(parts: &[Part]) -> u128 {
    parts.iter().map(|p| p.bytes).fold(0, u128::saturating_add)
}

/// Formats a number of bytes, such as `1.5 GiB`.
pub fn bytes(n: u128) -> String {
    const UNITS: [&str; 7] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB"];
    if n < 1024 {
        return format!("{n} bytes");
    }
    let mut value = n as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if value < 1e4 { format!("{value:.1} {unit}") } else { format!("{value:.1e} {unit}") }
}

/// Parses a number of bytes, such as `8GiB`, `500 MB` or `1073741824`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (text[..end].parse::<f64>().ok()?, text[end..].trim().to_ascii_lowercase());
    let powers = [("k", 1), ("m", 2), ("g", 3), ("t", 4)];
    let factor = match unit.as_str() {
        "" | "b" => 1.0,
        unit => {
            let (_, power) = powers.iter().find(|(letter, _)| unit.starts_with(letter))?;
            match &unit[1..] {
                "" | "ib" => 1024f64.powi(*power),
                "b" => 1000f64.powi(*power),
                _ => return None,
            }
        }
    };
    let bytes = number * factor;
    (bytes >= 1.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// Returns the memory of this machine in bytes, or a limit of the process or its control group if that is lower;
/// `None` where the system does not say.
pub fn of_machine() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = group.iter().filter_map(|path| read(path)?.trim().parse::<u64>().ok());
    group.chain(total).chain(read("/proc/self/limits").and_then(|text| of_process(&text))).min()
}

/// Returns the limit on the memory of a process, as Linux describes its limits.
fn of_process(limits: &str) -> Option<u64> {
    let of_kind = |kind| limits.lines().find_map(|line| line.strip_prefix(kind));
    let limits = ["Max address space", "Max data size"].into_iter().filter_map(of_kind);
    limits.filter_map(|values| values.split_whitespace().next()?.parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_process_are_read() {
        let text = |space, data| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max data size             {data:20} unlimited            bytes     \n\
                 Max address space         {space:20} unlimited            bytes     \n"
            )
        };
        assert_eq!(of_process(&text("unlimited", "unlimited")), None);
        assert_eq!(of_process(&text("4294967296", "unlimited")), Some(1 << 32));
        assert_eq!(of_process(&text("4294967296", "1048576")), Some(1 << 20));
        assert_eq!(of_process(""), None);
    }

    #[test]
    fn bytes_are_written_and_read() {
        for (n, text) in [(512, "512 bytes"), (1536, "1.5 KiB"), (8 << 30, "8.0 GiB"), (1 << 50, "1.0 PiB")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u128::MAX), "2.9e17 ZiB");
        for (text, n) in [
            ("8GiB", 8 << 30),
            ("500 MB", 500_000_000),
            ("1.5k", 1536),
            ("77", 77),
            ("2tb", 2_000_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Some(n), "{text}");
        }
        for text in ["", "GiB", "8 apples", "-1", "0", "1e99", "8GiBs"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
