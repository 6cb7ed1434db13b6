//! Names shared by the golden files and the tests that read them.

/// The terms for the first words of the case names in `terms.json`.
pub const TERMS: [(&str, &str); 12] = [
    ("info_nce", "InfoNce"),
    ("proto_nce", "ProtoNce"),
    ("dcl", "Dcl"),
    ("sup_con", "SupCon"),
    ("swapped_assignment", "SwappedAssignment"),
    ("cosine_prediction", "CosinePrediction"),
    ("proto_scatter", "ProtoScatter"),
    ("vicreg", "VicReg"),
    ("alignment", "Alignment"),
    ("uniformity", "Uniformity"),
    ("correlation", "Correlation"),
    ("ko_leo", "KoLeo"),
];
