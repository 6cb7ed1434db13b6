//! NVRTC, the run-time compiler for kernels.

use super::forward;
use cudarc::nvrtc::sys::*;
use std::ffi::{c_char, c_int};

forward! { NVRTC: nvrtcResult, nvrtcResult::NVRTC_SUCCESS, nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR;
    fn nvrtcCompileProgram(prog: nvrtcProgram, numOptions: c_int, options: *const *const c_char);
    fn nvrtcCreateProgram(prog: *mut nvrtcProgram, src: *const c_char, name: *const c_char, numHeaders: c_int, headers: *const *const c_char, includeNames: *const *const c_char);
    fn nvrtcDestroyProgram(prog: *mut nvrtcProgram);
    fn nvrtcGetPTX(prog: nvrtcProgram, ptx: *mut c_char);
    fn nvrtcGetPTXSize(prog: nvrtcProgram, ptxSizeRet: *mut usize);
    fn nvrtcGetProgramLog(prog: nvrtcProgram, log: *mut c_char);
    fn nvrtcGetProgramLogSize(prog: nvrtcProgram, logSizeRet: *mut usize);
}
