//! Fuzz targets: functions of bytes that must not panic, whatever the bytes are.
//!
//! `fuzz/` runs each of them under libFuzzer. The test below runs each of them briefly, on a stable compiler.
//! A new target is a function in one of these files, a line in [`ALL`], and a file in `fuzz/fuzz_targets`
//! with its `[[bin]]` entry in `fuzz/Cargo.toml`.
#![allow(dead_code)] // each program in fuzz/ uses one target

pub mod data;
pub mod text;

/// A target: its name in `fuzz/`, its function, and files that it begins with.
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// What must not panic.
    pub run: fn(&[u8]),
    /// Returns valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const ALL: &[Target] = &[
    Target { name: "recipe", run: text::recipe, seeds: text::recipes },
    Target { name: "set", run: text::set, seeds: text::assignments },
    Target { name: "sweep", run: text::sweep, seeds: text::sweeps },
    Target { name: "component", run: text::component, seeds: text::components },
    Target { name: "picture", run: data::picture, seeds: data::pictures },
    Target { name: "npy", run: data::npy, seeds: data::arrays },
    Target { name: "idx", run: data::idx, seeds: data::idx_files },
    Target { name: "cifar", run: data::cifar, seeds: data::records },
    Target { name: "tar", run: data::tar, seeds: data::archives },
    Target { name: "csv", run: data::csv, seeds: data::tables },
    Target { name: "safetensors", run: data::safetensors, seeds: data::tensor_files },
    Target { name: "parquet", run: data::parquet, seeds: data::parquet_files },
    Target { name: "checkpoint", run: data::checkpoint, seeds: data::checkpoints },
    Target { name: "metrics", run: data::metrics, seeds: data::logs },
    Target { name: "postmortem", run: data::postmortem, seeds: data::postmortems },
];

#[cfg(test)]
pub mod tests {
    use super::*;
    use pauc_testing::{property, random::Random};

    /// Changes a few bytes.
    pub fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() + 1);
            let end = (at + random.below(40)).min(bytes.len());
            match random.below(5) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
                3 => bytes.insert(at, random.bits() as u8),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = random.bits() as u8),
            }
        }
    }

    #[test]
    fn damaged_seeds_panic_nowhere() {
        for target in ALL {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
            for case in 0..crate::count(200) {
                let mut random = Random::new(property::seed(), case as u64);
                let mut bytes = random.pick(&seeds);
                damage(&mut bytes, &mut random);
                (target.run)(&bytes);
            }
        }
        std::fs::remove_dir_all(data::folder()).unwrap();
    }

    /// Writes the seeds for `just fuzz`, which sets the variable.
    #[test]
    fn seeds_are_written_where_libfuzzer_looks() {
        let Some(folder) = std::env::var_os("PAUC_FUZZ_CORPUS") else { return };
        for target in ALL {
            let folder = std::path::Path::new(&folder).join(target.name);
            std::fs::create_dir_all(&folder).unwrap();
            for (i, seed) in (target.seeds)().iter().enumerate() {
                std::fs::write(folder.join(format!("seed{i}")), seed).unwrap();
            }
        }
    }
}
