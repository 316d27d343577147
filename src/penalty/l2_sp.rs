//! L2-SP (Li, Grandvalet and Davoine 2018): (λ/2)‖w − w⁰‖², w⁰ the pretrained weights that training began with. A
//! weight that no file gave has no w⁰, and none of this penalty.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::gradient::GradientForm;

/// `l2_sp`.
pub struct L2Sp;

impl GradientForm for L2Sp {
    fn key(&self) -> &'static str {
        "l2_sp"
    }

    fn family(&self) -> &'static str {
        "quadratic"
    }

    fn update_rule(&self) -> &'static str {
        "g ← g + λ·(w − w⁰), w⁰ what `model.init_from` gave; nothing where it gave none"
    }

    fn same_as(&self) -> &'static str {
        "L2-SP (Li, Grandvalet & Davoine 2018), α = λ; their β is `l2` in a group of the new layers"
    }

    fn term(&self, w: &Tensor, initial: Option<&Tensor>) -> Result<Tensor> {
        match initial {
            Some(initial) => Ok(w
                .f_sub(initial)?
                .f_to_kind(Kind::Double)?
                .f_square()?
                .f_sum(Kind::Double)?
                .f_mul_scalar(0.5)?),
            None => Ok(Tensor::f_zeros([0; 0], (Kind::Double, w.device()))?),
        }
    }

    fn gradient(&self, w: &Tensor, initial: Option<&Tensor>) -> Result<Tensor> {
        Ok(match initial {
            Some(initial) => w.f_sub(initial)?,
            None => w.f_zeros_like()?,
        })
    }

    fn needs_initial(&self) -> bool {
        true
    }
}
