//! Selects which parameters of a model are trained.

use basic_models::nn::Llava;
use burn::module::Module;

use crate::recipe::Part;

/// Marks the parameters that a run trains; all others are frozen.
pub fn set_trainable(model: Llava, parts: &[Part]) -> Llava {
    let mut model = model.freeze();
    if parts.contains(&Part::Vision) {
        model.vision_tower = model.vision_tower.unfreeze();
    }
    if parts.contains(&Part::FusedVision) {
        model.fused_vision_towers = model.fused_vision_towers.unfreeze();
    }
    if parts.contains(&Part::Projector) {
        model.multi_modal_projector = model.multi_modal_projector.unfreeze();
    }
    if parts.contains(&Part::Decoder) {
        model.language_model = model.language_model.unfreeze();
        model.lm_head = model.lm_head.map(Module::unfreeze);
    }
    if parts.contains(&Part::Head) {
        model.heads = model.heads.unfreeze();
    }
    model
}
