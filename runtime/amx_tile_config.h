/* For building llama.cpp with GCC on processors with AMX: CXXFLAGS="-include amx_tile_config.h".
 * GCC 12's _tile_loadconfig claims to read 8 of a configuration's 64 bytes, so the others are never stored, and the
 * first tile instruction is illegal (llama.cpp pull request 26954). */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
