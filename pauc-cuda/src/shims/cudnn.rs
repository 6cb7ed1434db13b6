//! cuDNN.

use super::forward;
use cudarc::cudnn::sys::*;
use std::ffi::{c_int, c_void};

forward! { CUDNN: cudnnStatus_t, cudnnStatus_t::CUDNN_STATUS_SUCCESS, cudnnStatus_t::CUDNN_STATUS_NOT_INITIALIZED;
    fn cudnnAdvInferVersionCheck();
    fn cudnnAdvTrainVersionCheck();
    fn cudnnCnnInferVersionCheck();
    fn cudnnCnnTrainVersionCheck();
    fn cudnnConvolutionBackwardData(handle: cudnnHandle_t, alpha: *const c_void, wDesc: cudnnFilterDescriptor_t, w: *const c_void, dyDesc: cudnnTensorDescriptor_t, dy: *const c_void, convDesc: cudnnConvolutionDescriptor_t, algo: cudnnConvolutionBwdDataAlgo_t, workSpace: *mut c_void, workSpaceSizeInBytes: usize, beta: *const c_void, dxDesc: cudnnTensorDescriptor_t, dx: *mut c_void);
    fn cudnnConvolutionBackwardFilter(handle: cudnnHandle_t, alpha: *const c_void, xDesc: cudnnTensorDescriptor_t, x: *const c_void, dyDesc: cudnnTensorDescriptor_t, dy: *const c_void, convDesc: cudnnConvolutionDescriptor_t, algo: cudnnConvolutionBwdFilterAlgo_t, workSpace: *mut c_void, workSpaceSizeInBytes: usize, beta: *const c_void, dwDesc: cudnnFilterDescriptor_t, dw: *mut c_void);
    fn cudnnConvolutionForward(handle: cudnnHandle_t, alpha: *const c_void, xDesc: cudnnTensorDescriptor_t, x: *const c_void, wDesc: cudnnFilterDescriptor_t, w: *const c_void, convDesc: cudnnConvolutionDescriptor_t, algo: cudnnConvolutionFwdAlgo_t, workSpace: *mut c_void, workSpaceSizeInBytes: usize, beta: *const c_void, yDesc: cudnnTensorDescriptor_t, y: *mut c_void);
    fn cudnnCreate(handle: *mut cudnnHandle_t);
    fn cudnnCreateConvolutionDescriptor(convDesc: *mut cudnnConvolutionDescriptor_t);
    fn cudnnCreateFilterDescriptor(filterDesc: *mut cudnnFilterDescriptor_t);
    fn cudnnCreateReduceTensorDescriptor(reduceTensorDesc: *mut cudnnReduceTensorDescriptor_t);
    fn cudnnCreateTensorDescriptor(tensorDesc: *mut cudnnTensorDescriptor_t);
    fn cudnnDestroy(handle: cudnnHandle_t);
    fn cudnnDestroyConvolutionDescriptor(convDesc: cudnnConvolutionDescriptor_t);
    fn cudnnDestroyFilterDescriptor(filterDesc: cudnnFilterDescriptor_t);
    fn cudnnDestroyReduceTensorDescriptor(reduceTensorDesc: cudnnReduceTensorDescriptor_t);
    fn cudnnDestroyTensorDescriptor(tensorDesc: cudnnTensorDescriptor_t);
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(handle: cudnnHandle_t, filterDesc: cudnnFilterDescriptor_t, diffDesc: cudnnTensorDescriptor_t, convDesc: cudnnConvolutionDescriptor_t, gradDesc: cudnnTensorDescriptor_t, requestedAlgoCount: c_int, returnedAlgoCount: *mut c_int, perfResults: *mut cudnnConvolutionBwdDataAlgoPerf_t);
    fn cudnnGetConvolutionBackwardDataWorkspaceSize(handle: cudnnHandle_t, wDesc: cudnnFilterDescriptor_t, dyDesc: cudnnTensorDescriptor_t, convDesc: cudnnConvolutionDescriptor_t, dxDesc: cudnnTensorDescriptor_t, algo: cudnnConvolutionBwdDataAlgo_t, sizeInBytes: *mut usize);
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle: cudnnHandle_t, srcDesc: cudnnTensorDescriptor_t, diffDesc: cudnnTensorDescriptor_t, convDesc: cudnnConvolutionDescriptor_t, gradDesc: cudnnFilterDescriptor_t, requestedAlgoCount: c_int, returnedAlgoCount: *mut c_int, perfResults: *mut cudnnConvolutionBwdFilterAlgoPerf_t);
    fn cudnnGetConvolutionBackwardFilterWorkspaceSize(handle: cudnnHandle_t, xDesc: cudnnTensorDescriptor_t, dyDesc: cudnnTensorDescriptor_t, convDesc: cudnnConvolutionDescriptor_t, gradDesc: cudnnFilterDescriptor_t, algo: cudnnConvolutionBwdFilterAlgo_t, sizeInBytes: *mut usize);
    fn cudnnGetConvolutionForwardAlgorithm_v7(handle: cudnnHandle_t, srcDesc: cudnnTensorDescriptor_t, filterDesc: cudnnFilterDescriptor_t, convDesc: cudnnConvolutionDescriptor_t, destDesc: cudnnTensorDescriptor_t, requestedAlgoCount: c_int, returnedAlgoCount: *mut c_int, perfResults: *mut cudnnConvolutionFwdAlgoPerf_t);
    fn cudnnGetConvolutionForwardWorkspaceSize(handle: cudnnHandle_t, xDesc: cudnnTensorDescriptor_t, wDesc: cudnnFilterDescriptor_t, convDesc: cudnnConvolutionDescriptor_t, yDesc: cudnnTensorDescriptor_t, algo: cudnnConvolutionFwdAlgo_t, sizeInBytes: *mut usize);
    fn cudnnGetReductionIndicesSize(handle: cudnnHandle_t, reduceTensorDesc: cudnnReduceTensorDescriptor_t, aDesc: cudnnTensorDescriptor_t, cDesc: cudnnTensorDescriptor_t, sizeInBytes: *mut usize);
    fn cudnnGetReductionWorkspaceSize(handle: cudnnHandle_t, reduceTensorDesc: cudnnReduceTensorDescriptor_t, aDesc: cudnnTensorDescriptor_t, cDesc: cudnnTensorDescriptor_t, sizeInBytes: *mut usize);
    fn cudnnOpsInferVersionCheck();
    fn cudnnOpsTrainVersionCheck();
    fn cudnnReduceTensor(handle: cudnnHandle_t, reduceTensorDesc: cudnnReduceTensorDescriptor_t, indices: *mut c_void, indicesSizeInBytes: usize, workspace: *mut c_void, workspaceSizeInBytes: usize, alpha: *const c_void, aDesc: cudnnTensorDescriptor_t, A: *const c_void, beta: *const c_void, cDesc: cudnnTensorDescriptor_t, C: *mut c_void);
    fn cudnnSetConvolution2dDescriptor(convDesc: cudnnConvolutionDescriptor_t, pad_h: c_int, pad_w: c_int, u: c_int, v: c_int, dilation_h: c_int, dilation_w: c_int, mode: cudnnConvolutionMode_t, computeType: cudnnDataType_t);
    fn cudnnSetConvolutionGroupCount(convDesc: cudnnConvolutionDescriptor_t, groupCount: c_int);
    fn cudnnSetConvolutionMathType(convDesc: cudnnConvolutionDescriptor_t, mathType: cudnnMathType_t);
    fn cudnnSetFilter4dDescriptor(filterDesc: cudnnFilterDescriptor_t, dataType: cudnnDataType_t, format: cudnnTensorFormat_t, k: c_int, c: c_int, h: c_int, w: c_int);
    fn cudnnSetReduceTensorDescriptor(reduceTensorDesc: cudnnReduceTensorDescriptor_t, reduceTensorOp: cudnnReduceTensorOp_t, reduceTensorCompType: cudnnDataType_t, reduceTensorNanOpt: cudnnNanPropagation_t, reduceTensorIndices: cudnnReduceTensorIndices_t, reduceTensorIndicesType: cudnnIndicesType_t);
    fn cudnnSetStream(handle: cudnnHandle_t, streamId: cudaStream_t);
    fn cudnnSetTensor4dDescriptor(tensorDesc: cudnnTensorDescriptor_t, format: cudnnTensorFormat_t, dataType: cudnnDataType_t, n: c_int, c: c_int, h: c_int, w: c_int);
    fn cudnnSetTensor4dDescriptorEx(tensorDesc: cudnnTensorDescriptor_t, dataType: cudnnDataType_t, n: c_int, c: c_int, h: c_int, w: c_int, nStride: c_int, cStride: c_int, hStride: c_int, wStride: c_int);
    fn cudnnSetTensorNdDescriptor(tensorDesc: cudnnTensorDescriptor_t, dataType: cudnnDataType_t, nbDims: c_int, dimA: *const c_int, strideA: *const c_int);
}
