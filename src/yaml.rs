//! YAML files as trees that know where each key stands.

/// A value that serde accepted and the program refuses.
#[derive(Clone, Debug)]
pub struct Invalid {
    /// Key path relative to the spec that refuses, such as `groups.0.l2`; empty for the spec itself.
    pub path: String,
    /// What is wrong, and the remedy.
    pub message: String,
}
