// The description of a decoder for Python: plain structs that are filled attribute by attribute.
#include "bindings_model.h"

#include <stdexcept>

#include "decoder_config.h"

using namespace nb::literals;
using namespace oag;

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<float> copy_floats(const Floats& array) { return {array.data(), array.data() + array.shape(0)}; }

// A vector attribute that is set from a float32 array; reading it gives its length.
template <class Owner>
void def_vector(nb::class_<Owner>& type, const char* name, std::vector<float> Owner::*member) {
  type.def_prop_rw(
      name, [member](const Owner& owner) { return (owner.*member).size(); },
      [member](Owner& owner, const Floats& array) { owner.*member = copy_floats(array); });
}

// A list attribute that is set whole; reading it gives its length.
template <class Item>
void def_list(nb::class_<DecoderConfig>& type, const char* name, std::vector<Item> DecoderConfig::*member) {
  type.def_prop_rw(
      name, [member](const DecoderConfig& config) { return (config.*member).size(); },
      [member](DecoderConfig& config, const nb::sequence& items) { config.*member = to_vector<Item>(items); });
}

void bind_layer(nb::module_& m) {
  nb::class_<LayerConfig> layer(m, "LayerConfig");
  layer.def(nb::init<>())
      .def_rw("num_heads", &LayerConfig::num_heads)
      .def_rw("num_kv_heads", &LayerConfig::num_kv_heads)
      .def_rw("head_dim", &LayerConfig::head_dim)
      .def_rw("window", &LayerConfig::window)
      .def_rw("scale", &LayerConfig::scale)
      .def_rw("intermediate_size", &LayerConfig::intermediate_size)
      .def_rw("rotary", &LayerConfig::rotary)
      .def_rw("qkv", &LayerConfig::qkv)
      .def_rw("attention_output", &LayerConfig::attention_output)
      .def_rw("gate_up", &LayerConfig::gate_up)
      .def_rw("down", &LayerConfig::down)
      .def_rw("input_norm", &LayerConfig::input_norm)
      .def_rw("pre_mlp_norm", &LayerConfig::pre_mlp_norm)
      .def_rw("post_mixer_norm", &LayerConfig::post_mixer_norm)
      .def_rw("post_mlp_norm", &LayerConfig::post_mlp_norm)
      .def_rw("query_norm", &LayerConfig::query_norm)
      .def_rw("key_norm", &LayerConfig::key_norm);
  def_vector(layer, "qkv_bias", &LayerConfig::qkv_bias);
  def_vector(layer, "output_bias", &LayerConfig::output_bias);
}

}  // namespace

void bind_config(nb::module_& m) {
  nb::class_<NormConfig>(m, "NormConfig")
      .def("__init__",
           [](NormConfig* self, const Floats& weight, float epsilon, float weight_offset) {
             new (self) NormConfig{copy_floats(weight), epsilon, weight_offset};
           },
           "weight"_a, "epsilon"_a, "weight_offset"_a = 0.0f);
  nb::class_<RotaryConfig>(m, "RotaryConfig")
      .def("__init__",
           [](RotaryConfig* self, const Floats& inverse_frequencies, float attention_factor) {
             new (self) RotaryConfig{copy_floats(inverse_frequencies), attention_factor};
           },
           "inverse_frequencies"_a, "attention_factor"_a = 1.0f);
  bind_layer(m);
  nb::class_<DecoderConfig> config(m, "DecoderConfig");
  config.def(nb::init<>())
      .def_rw("hidden_size", &DecoderConfig::hidden_size)
      .def_rw("vocab_size", &DecoderConfig::vocab_size)
      .def_rw("max_positions", &DecoderConfig::max_positions)
      .def_rw("max_step_tokens", &DecoderConfig::max_step_tokens)
      .def_rw("max_step_rows", &DecoderConfig::max_step_rows)
      .def_rw("embedding_scale", &DecoderConfig::embedding_scale)
      .def_rw("embedding", &DecoderConfig::embedding)
      .def_rw("head", &DecoderConfig::head)
      .def_rw("final_norm", &DecoderConfig::final_norm)
      .def_rw("portable_attention", &DecoderConfig::portable_attention)
      .def_rw("quantise_per_token", &DecoderConfig::quantise_per_token)
      .def_prop_rw(
          "kv_format", [](const DecoderConfig& config) { return static_cast<int>(config.kv_format); },
          [](DecoderConfig& config, int format) {
            if (format < 0 || format > 3)
              throw std::invalid_argument("the KV cache is f32 (0), bf16 (1), int8 (2) or fp8 (3)");
            config.kv_format = static_cast<KvFormat>(format);
          });
  def_list(config, "rotary", &DecoderConfig::rotary);
  def_list(config, "layers", &DecoderConfig::layers);
}
