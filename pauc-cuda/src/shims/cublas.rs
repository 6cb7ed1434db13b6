//! cuBLAS.

use super::forward;
use cudarc::cublas::sys::*;
use std::ffi::{c_int, c_longlong, c_void};

forward! { CUBLAS: cublasStatus_t, cublasStatus_t::CUBLAS_STATUS_SUCCESS, cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED;
    fn cublasCreate_v2(handle: *mut cublasHandle_t);
    fn cublasDestroy_v2(handle: cublasHandle_t);
    fn cublasDgemmStridedBatched(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const f64, A: *const f64, lda: c_int, strideA: c_longlong, B: *const f64, ldb: c_int, strideB: c_longlong, beta: *const f64, C: *mut f64, ldc: c_int, strideC: c_longlong, batchCount: c_int);
    fn cublasDgemm_v2(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const f64, A: *const f64, lda: c_int, B: *const f64, ldb: c_int, beta: *const f64, C: *mut f64, ldc: c_int);
    fn cublasDgemv_v2(handle: cublasHandle_t, trans: cublasOperation_t, m: c_int, n: c_int, alpha: *const f64, A: *const f64, lda: c_int, x: *const f64, incx: c_int, beta: *const f64, y: *mut f64, incy: c_int);
    fn cublasGemmEx(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const c_void, A: *const c_void, Atype: cudaDataType, lda: c_int, B: *const c_void, Btype: cudaDataType, ldb: c_int, beta: *const c_void, C: *mut c_void, Ctype: cudaDataType, ldc: c_int, computeType: cublasComputeType_t, algo: cublasGemmAlgo_t);
    fn cublasGemmStridedBatchedEx(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const c_void, A: *const c_void, Atype: cudaDataType, lda: c_int, strideA: c_longlong, B: *const c_void, Btype: cudaDataType, ldb: c_int, strideB: c_longlong, beta: *const c_void, C: *mut c_void, Ctype: cudaDataType, ldc: c_int, strideC: c_longlong, batchCount: c_int, computeType: cublasComputeType_t, algo: cublasGemmAlgo_t);
    fn cublasGetVersion_v2(handle: cublasHandle_t, version: *mut c_int);
    fn cublasSetMathMode(handle: cublasHandle_t, mode: cublasMath_t);
    fn cublasSetStream_v2(handle: cublasHandle_t, streamId: cudaStream_t);
    fn cublasSgemmStridedBatched(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const f32, A: *const f32, lda: c_int, strideA: c_longlong, B: *const f32, ldb: c_int, strideB: c_longlong, beta: *const f32, C: *mut f32, ldc: c_int, strideC: c_longlong, batchCount: c_int);
    fn cublasSgemm_v2(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const f32, A: *const f32, lda: c_int, B: *const f32, ldb: c_int, beta: *const f32, C: *mut f32, ldc: c_int);
    fn cublasSgemv_v2(handle: cublasHandle_t, trans: cublasOperation_t, m: c_int, n: c_int, alpha: *const f32, A: *const f32, lda: c_int, x: *const f32, incx: c_int, beta: *const f32, y: *mut f32, incy: c_int);
}
