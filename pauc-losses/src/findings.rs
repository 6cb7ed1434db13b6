//! Codes and texts of the findings that the rules of terms report, and the numbers that the rules share.

use pauc_traits::term::{Facts, Finding, Severity};

/// The queue holds keys of a network that changes too fast.
pub const QUEUE_WITHOUT_MOMENTUM: &str = "W0301";
/// Nearly every occupied prototype has a single sample in the batch.
pub const SINGLETONS: &str = "W0302";
/// A correlation of D columns over fewer than D + 1 rows.
pub const RANK_DEFICIENT: &str = "W0303";
/// The constant centroid outweighs the members of a batch prototype.
pub const CENTROID_DOMINATES: &str = "W0304";
/// A term that only pulls has no predictor.
pub const NO_PREDICTOR: &str = "W0305";
/// ProtoNCE has a larger weight than those that were harmless in a study.
pub const PROTOTYPES_DOMINATE: &str = "W0306";
/// A batch has too few samples for the term to compare anything.
pub const TOO_FEW_ROWS: &str = "E0301";
/// More negatives are requested than prototypes are left.
pub const TOO_MANY_NEGATIVES: &str = "E0302";
/// A term that compares prototypes has fewer than two.
pub const TOO_FEW_PROTOTYPES: &str = "E0303";
/// Two settings exclude each other.
pub const INCOMPATIBLE: &str = "E0304";

/// Every code with its title and explanation.
pub const ALL: &[(&str, &str, &str)] = &[
    (
        QUEUE_WITHOUT_MOMENTUM,
        "a queue without a momentum encoder",
        "The queue holds embeddings of past batches. Without a momentum encoder they come from a network that \
         has changed since, at the full learning rate in every step, and the older ones are inconsistent with \
         the queries (He et al., 2020, section 3.2). Add a momentum encoder, or use in-batch negatives.",
    ),
    (
        SINGLETONS,
        "nearly every occupied prototype has a single sample in the batch",
        "A batch prototype is the mean of those members of a prototype that are in the batch. With many more \
         prototypes than samples, almost every occupied prototype has one member, p_j = q_i, and a term on \
         prototypes becomes the same term on instances. Use fewer prototypes, larger batches, `queue: true`, \
         or `n_min: 2`.",
    ),
    (
        RANK_DEFICIENT,
        "a correlation of D columns over fewer than D + 1 rows",
        "The correlation matrix of D columns over n rows has at most rank n − 1. Its off-diagonal energy \
         cannot fall below D²/(n − 1) − D, even if the columns are decorrelated as well as possible. Use more \
         prototypes or larger batches, a narrower projector, or `kind: Gram`.",
    ),
    (
        CENTROID_DOMINATES,
        "the constant centroid outweighs the members of a batch prototype",
        "p_j = norm(sum of members + rho·centroid). The centroid is constant between two clusterings. As `rho` \
         grows beyond the number of members, p_j stops moving and the gradient vanishes. A term on centroids \
         alone has no gradient at all. Use a smaller `rho`.",
    ),
    (
        NO_PREDICTOR,
        "a term that only pulls has no predictor",
        "BYOL and SimSiam prevent collapse with a head after the projector that only the online network has. \
         Add `predictor: Mlp(dims: [64, 128])` to the recipe, whose last width is that of the projector, or a \
         term that spreads embeddings, such as `Uniformity(level: Instances)`.",
    ),
    (
        PROTOTYPES_DOMINATE,
        "ProtoNCE dominates the objective",
        "ProtoNCE contracts the images of a prototype. In the study `mechanism` of this project, a weight of 16 \
         beside an InfoNCE of weight 1 lowered the diversity within classes and the accuracy of a kNN probe. Weights \
         up to 4 did not lower the accuracy measurably. Weights between 4 and 16 were not tried. Use a smaller weight.",
    ),
    (
        TOO_FEW_ROWS,
        "a batch has too few samples for the term to compare anything",
        "The term compares the samples of a batch with each other and needs at least 2. Use a larger batch.",
    ),
    (
        TOO_MANY_NEGATIVES,
        "more negatives are requested than prototypes are left",
        "Negatives are drawn without replacement from the prototypes that no sample of the batch belongs to. \
         A batch of B samples may occupy B prototypes, which leaves K − B. Use `Sample(r)` with a smaller r, \
         more prototypes, or `negatives: All`.",
    ),
    (
        TOO_FEW_PROTOTYPES,
        "a term that compares prototypes has fewer than two",
        "A term that compares prototypes needs at least two in every level. Use a larger `k`.",
    ),
    (
        INCOMPATIBLE,
        "two settings exclude each other",
        "Two settings of the term exclude each other. The message names them and the remedy.",
    ),
];

/// Returns a finding of severity warning.
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

/// Returns a finding of severity warning about the term as a whole.
pub fn warning_of_term(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> Finding {
    Finding { field: None, ..warning(code, "", message, help) }
}

/// Returns a finding of severity error.
pub fn error(
    code: &'static str,
    field: &'static str,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Finding {
    Finding { severity: Severity::Error, ..warning(code, field, message, help) }
}

/// Returns an error if the batch has fewer than the two samples that a term over its samples needs.
pub fn at_least_two(facts: &Facts) -> Vec<Finding> {
    if facts.batch >= 2 {
        return Vec::new();
    }
    vec![Finding {
        severity: Severity::Error,
        code: TOO_FEW_ROWS,
        field: None,
        message: format!("the term compares at least 2 samples, got a batch of {}", facts.batch),
        help: "use a larger batch".into(),
    }]
}

/// Returns the expected number of prototypes that B samples occupy, out of K equally likely ones: K·(1 − (1 −
/// 1/K)^B).
pub fn expected_occupied(k: usize, batch: usize) -> f64 {
    let k = k as f64;
    -k * (batch as f64 * (-1.0 / k).ln_1p()).exp_m1()
}

/// Returns the mean over levels of ln(`candidates(k)`), or `None` if a size is unknown or there is no level.
pub fn mean_ln(facts: &Facts, candidates: impl Fn(usize) -> f64) -> Option<f64> {
    let sizes: Option<Vec<usize>> = facts.prototypes.iter().copied().collect();
    let sizes = sizes.filter(|s| !s.is_empty())?;
    Some(sizes.iter().map(|k| candidates(*k).ln()).sum::<f64>() / sizes.len() as f64)
}

/// Checks batch prototypes in a run of these sizes: too few prototypes, or one sample per prototype.
pub fn prototypes(facts: &Facts, options: &pauc_traits::batch::PrototypeOptions) -> Vec<Finding> {
    let mut found = Vec::new();
    for (m, k) in facts.prototypes.iter().enumerate() {
        let Some(k) = *k else { continue };
        if k < 2 {
            found.push(error(
                TOO_FEW_PROTOTYPES,
                "level",
                format!("level {m}: the term compares at least 2 prototypes, got {k}"),
                "set `k` to at least 2",
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
                    "level {m} has {k} prototypes for batches of {}: about {occupied:.0} are occupied, nearly \
                     all by one sample",
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
                    "`rho` is {}, but a prototype of level {m} has only {members:.1} members per batch",
                    options.rho
                ),
                "use a smaller `rho`",
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
        // −K·expm1(B·ln1p(−1/K)) has five operations, each of which adds a small relative error.
        let close = |k, batch, want: f64| {
            assert_within!(expected_occupied(k, batch), want, tolerance::f64(5, want), "{k}, {batch}");
        };
        close(1, 10, 1.0);
        close(2, 1, 1.0);
        close(2, 2, 1.5);
        // B − B(B − 1)/2K; higher terms are too small to matter.
        close(1_000_000_000, 64, 64.0 - 64.0 * 63.0 / 2e9);
        close(10, 100_000, 10.0);
    }
}
