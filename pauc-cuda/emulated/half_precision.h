// Reads and writes elements of f32, bf16 and f16 for cuBLAS and cuDNN. The two libraries number the types
// differently: define the constants F16 and BF16 before including this.
#include <stdint.h>
#include <string.h>

static double get(const void *from, long i, int type) {
    if (type == F16) return ((const _Float16 *)from)[i];
    if (type != BF16) return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to the nearest, ties to even. NaN stays NaN.
static void put(void *to, long i, int type, float value) {
    if (type == F16) {
        ((_Float16 *)to)[i] = (_Float16)value;
    } else if (type == BF16) {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        ((uint16_t *)to)[i] = value != value ? (bits >> 16) | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    } else {
        ((float *)to)[i] = value;
    }
}
