//! Losses that compare queries with candidates, or predict targets.

mod cosine_prediction;
mod dcl;
mod info_nce;
mod local_views;
mod proto_nce;
mod proto_scatter;
mod self_distillation;
mod sup_con;
mod swapped_assignment;
mod vic_reg;

pub use cosine_prediction::CosinePrediction;
pub use dcl::Dcl;
pub use info_nce::{InfoNce, Negatives};
pub use proto_nce::{Denominator, ProtoNce};
pub use proto_scatter::ProtoScatter;
pub use self_distillation::SelfDistillation;
pub use sup_con::SupCon;
pub use swapped_assignment::{SwappedAssignment, sinkhorn};
pub use vic_reg::VicReg;
