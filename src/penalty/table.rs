//! The `penalties!` macro: one line per form makes the keys of the YAML and the lists that all else iterates
//! over.

use super::form::Penalty;
use super::lambda::Lambda;

/// How a form acts, as an enum of the YAML.
pub trait Mode: Copy {
    /// The form in each of its modes, the default first.
    const FORMS: &'static [&'static dyn Penalty];

    fn form(self) -> &'static dyn Penalty;
}

/// What a config says of one form.
#[derive(Clone, Copy)]
pub struct Declared {
    pub key: &'static str,
    /// The key of its mode, where it has modes.
    pub mode_key: Option<&'static str>,
    pub lambda: Option<Lambda>,
    /// In the mode that is stated, else in its default.
    pub form: &'static dyn Penalty,
    pub states_mode: bool,
}

impl Declared {
    /// Whether its λ is ever above 0.
    pub fn acts(&self) -> bool {
        self.lambda.is_some_and(|lambda| lambda.is_active())
    }
}

/// The specs and tables of the forms: `key: Form;`, or `key: Form(Mode::Default), key_mode: Mode;`.
/// Doc comments before a key describe it.
macro_rules! penalties {
    ($(
        $(#[$doc:meta])* $key:ident: $form:expr $(, $(#[$mode_doc:meta])* $mode_key:ident: $mode:ty)?;
    )*) => {
        /// The penalty on the weights. Without any λ there is none.
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct PenaltySpec {
            $(
                $(#[$doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $key: Option<Lambda>,
                $(
                    $(#[$mode_doc])*
                    #[serde(skip_serializing_if = "Option::is_none")]
                    pub $mode_key: Option<$mode>,
                )?
            )*
            /// λ of (λ/2)·mean ‖∂L/∂x‖² over the samples, the gradient of the data loss by the inputs (double
            /// backpropagation): a number or a ramp, of no group.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub input_gradient: Option<Lambda>,
            /// The older place of the config's `groups`.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub groups: Vec<GroupSpec>,
        }

        /// Another rate and other λs for the parameters whose names match.
        ///
        /// What a group states holds for every tensor that it matches, biases and normalisation too. What it
        /// leaves out is inherited: weights keep the λs of `penalty`, other tensors 0. `l2` and
        /// `decoupled` are two ways of one penalty, so a group that states one of them does not inherit the
        /// other.
        #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct GroupSpec {
            /// A pattern over the dotted name, such as `layer4.*` or `*.bias`: `*` any text, `?` any one
            /// character.
            #[serde(rename = "match")]
            pub pattern: String,
            /// A factor on the scheduled learning rate, which decoupled decay and thresholds use too.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(extend("exclusiveMinimum" = 0))]
            pub lr: Option<f64>,
            /// Layer-wise decay of the learning rate: the network's last block keeps its rate, and each block
            /// before has that of the next times this factor.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
            pub lr_decay: Option<f64>,
            /// Until when they are not trained, running statistics included.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub freeze_until: Option<$crate::penalty::FreezeUntil>,
            $(
                $(#[$doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $key: Option<Lambda>,
                $(
                    $(#[$mode_doc])*
                    #[serde(default, skip_serializing_if = "Option::is_none")]
                    pub $mode_key: Option<$mode>,
                )?
            )*
        }

        /// The keys of the λs in YAML, in the order of the table.
        pub const KEYS: &[&str] = &[$(stringify!($key)),*];

        /// How many forms there are.
        pub(crate) const FORMS: usize = KEYS.len();

        /// Every form in each of its modes, with the keys of both; in the order of the table.
        fn all_forms() -> Vec<(&'static str, Option<&'static str>, &'static dyn Penalty)> {
            let mut all: Vec<(&'static str, Option<&'static str>, &'static dyn Penalty)> = Vec::new();
            $({
                let modes: [(&'static str, &[&'static dyn Penalty]); _] =
                    [$((stringify!($mode_key), <$mode as Mode>::FORMS))?];
                match modes.first() {
                    Some(&(mode, forms)) => {
                        all.extend(forms.iter().map(|&form| (stringify!($key), Some(mode), form)));
                    }
                    None => all.push((stringify!($key), None, &$form)),
                }
            })*
            all
        }

        impl PenaltySpec {
            /// What is said above the groups, one entry per form.
            pub(crate) fn declared(&self) -> [Declared; FORMS] {
                [$(declared!(self, $key, $form $(, $mode_key)?)),*]
            }
        }

        impl GroupSpec {
            /// What the group says, one entry per form.
            pub(crate) fn declared(&self) -> [Declared; FORMS] {
                [$(declared!(self, $key, $form $(, $mode_key)?)),*]
            }
        }
    };
}

macro_rules! declared {
    ($spec:ident, $key:ident, $form:expr) => {
        Declared {
            key: stringify!($key),
            mode_key: None,
            lambda: $spec.$key,
            form: {
                const FORM: &'static dyn Penalty = &$form;
                FORM
            },
            states_mode: false,
        }
    };
    ($spec:ident, $key:ident, $form:expr, $mode_key:ident) => {
        Declared {
            mode_key: Some(stringify!($mode_key)),
            form: {
                const FORM: &'static dyn Penalty = &$form;
                $spec.$mode_key.map_or(FORM, Mode::form)
            },
            states_mode: $spec.$mode_key.is_some(),
            ..declared!($spec, $key, $form)
        }
    };
}

pub(super) use {declared, penalties};
