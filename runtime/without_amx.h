/* For building llama.cpp: CXXFLAGS="-include without_amx.h".
 * It configures AMX's tiles once a thread, so any other library that uses them there (torch in bfloat16 does) makes its
 * next tile instruction illegal; GCC 12 moreover leaves the configuration unset (llama.cpp pull request 26954). */
#undef __AMX_INT8__
