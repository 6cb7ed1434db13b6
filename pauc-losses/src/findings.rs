//! What the rules of terms can find, by code, and the numbers that the rules share.

use pauc_traits::term::{Facts, Finding, Severity};

/// The queue holds keys of a network that changes without an average.
pub const QUEUE_WITHOUT_MOMENTUM: &str = "W0301";
/// Nearly every occupied prototype has a single sample in the batch.
pub const SINGLETONS: &str = "W0302";
/// A correlation of D columns over fewer than D + 1 rows.
pub const RANK_DEFICIENT: &str = "W0303";
/// The centroid, a constant, outweighs the members of a batch prototype.
pub const CENTROID_DOMINATES: &str = "W0304";
/// A prediction without a predictor.
pub const NO_PREDICTOR: &str = "W0305";
/// A batch has too few samples for the term to compare anything.
pub const TOO_FEW_ROWS: &str = "E0301";
/// More negatives are asked for than there are prototypes left.
pub const TOO_MANY_NEGATIVES: &str = "E0302";
/// A term between prototypes has fewer than two of them.
pub const TOO_FEW_PROTOTYPES: &str = "E0303";
/// Two settings exclude each other.
pub const INCOMPATIBLE: &str = "E0304";

/// Every code with its title and explanation.
pub const ALL: &[(&str, &str, &str)] = &[
    (
        QUEUE_WITHOUT_MOMENTUM,
        "the queue holds keys of a network that changes without an average",
        "The queue holds embeddings of past batches. Without a momentum encoder they come from a network that has \
         changed since, step by step at the full learning rate, and the older ones are inconsistent with the \
         queries (He et al., 2020, section 3.2). Add a momentum encoder, or use in-batch negatives.",
    ),
    (
        SINGLETONS,
        "nearly every occupied prototype has a single sample in the batch",
        "A batch prototype is the mean of the batch's members of a prototype. With many more prototypes than \
         samples almost every occupied prototype has one member, p_j = q_i, and a term on prototypes becomes the \
         same term on instances. Use fewer prototypes, larger batches, `queue: true`, or `n_min: 2`.",
    ),
    (
        RANK_DEFICIENT,
        "a correlation of D columns over fewer than D + 1 rows",
        "The correlation matrix of D columns over n rows has at most rank n − 1. Its off-diagonal energy cannot \
         fall below D²/(n − 1) − D, however well the columns are decorrelated, so the term pushes against a floor. \
         Use more prototypes or larger batches, a narrower projector, or `kind: Gram`.",
    ),
    (
        CENTROID_DOMINATES,
        "the centroid, a constant, outweighs the members of a batch prototype",
        "p_j = norm(sum of members + rho·centroid). The centroid is a constant between two clusterings: as rho \
         grows beyond the number of members, p_j stops moving and the gradient vanishes. A term on centroids alone \
         has no gradient at all. Use a smaller rho.",
    ),
    (
        NO_PREDICTOR,
        "a term that only pulls has no predictor",
        "BYOL and SimSiam keep embeddings from becoming one with a head behind the projector that only the online network \
         has. Add `predictor: Mlp(dims: [64, 128])` to the recipe, its last width that of the projector, or a term that \
         spreads, such as `Uniformity(level: Instances)`.",
    ),
    (
        TOO_FEW_ROWS,
        "a batch has too few samples for the term to compare anything",
        "The term compares the samples of a batch with each other and finds too few of them. Use a larger batch.",
    ),
    (
        TOO_MANY_NEGATIVES,
        "more negatives are asked for than there are prototypes left",
        "Negatives are drawn without replacement from the prototypes that no sample of the batch belongs to. A batch \
         of B samples may occupy B prototypes, which leaves K − B. Use `Sample(r)` with a smaller r, more \
         prototypes, or `negatives: All`.",
    ),
    (
        TOO_FEW_PROTOTYPES,
        "a term between prototypes has fewer than two of them",
        "A term between prototypes needs at least two prototypes in every level. Use a larger k.",
    ),
    (
        INCOMPATIBLE,
        "two settings exclude each other",
        "Two settings of the term exclude each other; the message says which and what to write.",
    ),
];

/// A finding of severity warning.
pub fn warning(
    code: &'static str,
    field: &'static str,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Finding {
    Finding {
        severity: Severity::Warning,
        code,
        field: Some(field),
        message: message.into(),
        help: help.into(),
    }
}

/// A finding of severity error.
pub fn error(
    code: &'static str,
    field: &'static str,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Finding {
    Finding { severity: Severity::Error, ..warning(code, field, message, help) }
}

/// The finding that a term over the samples of a batch needs two of them, if there are fewer.
pub fn at_least_two(facts: &Facts) -> Vec<Finding> {
    if facts.batch >= 2 {
        return Vec::new();
    }
    vec![Finding {
        severity: Severity::Error,
        code: TOO_FEW_ROWS,
        field: None,
        message: format!("a batch of {} has nothing to compare", facts.batch),
        help: "use a batch of at least 2".into(),
    }]
}

/// How many of K prototypes B samples are expected to occupy when every prototype is equally likely:
/// K·(1 − (1 − 1/K)^B).
pub fn expected_occupied(k: usize, batch: usize) -> f64 {
    let k = k as f64;
    -k * (batch as f64 * (-1.0 / k).ln_1p()).exp_m1()
}

/// The natural logarithm's mean over levels; `None` if a level's size is unknown or there is no level.
pub fn mean_ln(facts: &Facts, candidates: impl Fn(usize) -> f64) -> Option<f64> {
    let sizes: Option<Vec<usize>> = facts.prototypes.iter().copied().collect();
    let sizes = sizes.filter(|s| !s.is_empty())?;
    Some(sizes.iter().map(|k| candidates(*k).ln()).sum::<f64>() / sizes.len() as f64)
}

/// What is wrong with batch prototypes in a run of these sizes: too few of them, or one sample each.
pub fn prototypes(facts: &Facts, options: &pauc_traits::batch::PrototypeOptions) -> Vec<Finding> {
    let mut found = Vec::new();
    for (m, k) in facts.prototypes.iter().enumerate() {
        let Some(k) = *k else { continue };
        if k < 2 {
            found.push(error(
                TOO_FEW_PROTOTYPES,
                "level",
                format!("level {m} has {k} prototype, and the term compares prototypes with each other"),
                "use k of at least 2",
            ));
            continue;
        }
        let occupied = expected_occupied(k, facts.batch);
        let members = facts.batch as f64 / occupied;
        if occupied > 0.9 * facts.batch as f64 && options.n_min < 2 && !options.queue {
            found.push(warning(
                SINGLETONS,
                "level",
                format!(
                    "level {m} has {k} prototypes for batches of {}: about {occupied:.0} are occupied, nearly all by \
                     one sample",
                    facts.batch
                ),
                "use fewer prototypes, larger batches, `queue: true` or `n_min: 2`",
            ));
        }
        if options.rho > members {
            found.push(warning(
                CENTROID_DOMINATES,
                "rho",
                format!(
                    "rho {} outweighs the {members:.1} members that a prototype of level {m} has in a batch",
                    options.rho
                ),
                "use a smaller rho",
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn codes_are_unique() {
        let codes: std::collections::BTreeSet<_> = ALL.iter().map(|(c, ..)| c).collect();
        assert_eq!(codes.len(), ALL.len());
    }

    #[test]
    fn expected_occupancy_has_its_limits() {
        // −K·expm1(B·ln1p(−1/K)): five operations, of which each keeps the relative error small.
        let close = |k, batch, want: f64| {
            assert_within!(expected_occupied(k, batch), want, tolerance::f64(5, want), "{k}, {batch}");
        };
        close(1, 10, 1.0);
        close(2, 1, 1.0);
        close(2, 2, 1.5);
        // B − B(B − 1)/2K, and nothing that shows.
        close(1_000_000_000, 64, 64.0 - 64.0 * 63.0 / 2e9);
        close(10, 100_000, 10.0);
    }
}
