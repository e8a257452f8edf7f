// A device of its own for tests: its tensors lie in the CPU's memory, but torch takes them for those of another machine.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

using at::Tensor;
constexpr auto HERE = c10::DeviceType::PrivateUse1;
const c10::Device PLACE(HERE, 0);

struct Memory final : at::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::malloc(bytes) : nullptr;
    return {data, data, &std::free, PLACE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(HERE, &memory);

// One stream, on which everything is done when it is asked for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = HERE;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return HERE; }
  c10::Device exchangeDevice(c10::Device) const override { return PLACE; }
  c10::Device getDevice() const override { return PLACE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, PLACE); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, PLACE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, PLACE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};

// The same memory, as a tensor of the CPU.
Tensor seen(const Tensor& x) {
  return at::from_blob(x.mutable_data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(kind), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> kind,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(kind));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  Tensor source = from.device().type() == HERE ? seen(from) : from;
  (to.device().type() == HERE ? seen(to) : to).copy_(source);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  const_cast<Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize_(const Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size) return self;
  int64_t number = 1;
  for (auto n : size) number *= n;
  const size_t bytes = (number + self.storage_offset()) * self.itemsize();
  c10::StorageImpl* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < bytes) {
    c10::DataPtr fresh = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(fresh.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(fresh));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

Tensor& set_(Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, source, offset, size, stride);
}

Tensor& set_all(Tensor& self, at::Storage source) {
  const int64_t number = source.nbytes() / self.itemsize();
  return at::native::set_storage_cpu_(self, source, 0, {number}, {1});
}

at::Scalar item(const Tensor& x) { return seen(x).item(); }

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
                   c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                   c10::IntArrayRef output_padding, int64_t groups) {
  for (const Tensor& one : {x, weight, bias.value_or(Tensor())})
    TORCH_CHECK(!one.defined() || one.device().type() == HERE, "a convolution of tensors on unlike devices");
  std::optional<Tensor> own;
  if (bias.has_value() && bias->defined()) own = seen(*bias);
  return at::convolution(seen(x), seen(weight), own, stride, padding, dilation, transposed, output_padding, groups)
      .to(PLACE);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                        c10::IntArrayRef stride, c10::IntArrayRef padding,
                                                        c10::IntArrayRef dilation, bool transposed,
                                                        c10::IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> wanted) {
  std::vector<int64_t> bias{weight.size(transposed ? 1 : 0) * (transposed ? groups : 1)};
  auto [a, b, c] = at::convolution_backward(seen(grad), seen(x), seen(weight), bias, stride, padding, dilation,
                                            transposed, output_padding, groups, wanted);
  auto back = [](const Tensor& t) { return t.defined() ? t.to(PLACE) : t; };
  return {back(a), back(b), back(c)};
}

int64_t attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                  std::optional<double>, bool) {
  return 0;  // the one of plain operators
}

// Every other operator runs on the CPU, where its tensors are all of one device, as a GPU asks for.
void elsewhere(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string name = op.schema().name();
  const bool index = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
  int64_t number = op.schema().arguments().size(), place = -1;
  for (const auto& value : torch::jit::last(*stack, number)) {
    ++place;
    auto check = [&](const Tensor& x) {
      if (!x.defined() || x.device().type() == HERE || x.dim() == 0) return;
      TORCH_CHECK(index && place > 0, "Expected all tensors to be on the same device: ", name, " reads argument ",
                  op.schema().arguments()[place].name(), " on ", x.device(), ", others on ", PLACE);
    };
    if (value.isTensor()) check(value.toTensor());
    if (value.isTensorList()) for (const Tensor& x : value.toTensorList()) check(x);
    if (value.isOptionalTensorList()) for (const std::optional<Tensor>& x : value.toOptionalTensorList()) if (x) check(*x);
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_);
  m.impl("set_.source_Storage", &set_all);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("_fused_sdp_choice", &attention);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&elsewhere>()); }

const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace
