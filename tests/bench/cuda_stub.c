/* A CUDA runtime and driver that compute nothing: memory is the machine's own, launches are counted
 * and looked at, recordings are empty. Compiled by cuda_stub.py, once with -DRUNTIME for libcudart
 * and once without for libcuda; what is missing here answers 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned x, y, z;
} dim3;

#ifdef RUNTIME

enum { INVALID_CONFIGURATION = 9, COPY_UP = 1 };
static long launches, uploads, replays;
static int capturing;

long stub_launches(void) { return launches; }
long stub_uploads(void) { return uploads; }
long stub_replays(void) { return replays; }

static int take(void **place, size_t size) {
  if (posix_memalign(place, 512, size + 512)) return 2;
  memset(*place, 0, size + 512);
  return 0;
}

static int make(void **handle) { return take(handle, 64); }

/* What a device would refuse. */
static int launch(dim3 grid, dim3 block) {
  launches++;
  size_t threads = (size_t)block.x * block.y * block.z;
  if (grid.x && grid.y && grid.z && threads && threads <= 1024) return 0;
  fprintf(stderr, "a launch of %u x %u x %u blocks of %zu threads\n", grid.x, grid.y, grid.z, threads);
  return INVALID_CONFIGURATION;
}

int cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **a, size_t s, void *st) { return launch(grid, block); }
int __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **a, size_t s, void *st) { return launch(grid, block); }
int cudaLaunchCooperativeKernel(void *f, dim3 grid, dim3 block, void **a, size_t s, void *st) { return launch(grid, block); }
int cudaLaunchKernelExC(dim3 *sizes, void *f, void **a) { return launch(sizes[0], sizes[1]); }

static int copy(void *target, const void *source, size_t size, int kind) {
  uploads += kind == COPY_UP;
  memmove(target, source, size);
  return 0;
}

int cudaMemcpy(void *t, void *s, size_t n, int kind) { return copy(t, s, n, kind); }
int cudaMemcpyAsync(void *t, void *s, size_t n, int kind, void *st) { return copy(t, s, n, kind); }
int cudaMemcpyFromSymbol(void *t, void *s, size_t n, size_t o, int kind) { return memset(t, 0, n), 0; }
int cudaMemset(void *p, int v, size_t n) { return memset(p, v, n), 0; }
int cudaMemsetAsync(void *p, int v, size_t n, void *st) { return memset(p, v, n), 0; }
int cudaMalloc(void **p, size_t n) { return take(p, n); }
int cudaMallocHost(void **p, size_t n) { return take(p, n); }
int cudaHostAlloc(void **p, size_t n, unsigned f) { return take(p, n); }
int cudaMallocFromPoolAsync(void **p, size_t n, void *a, void *b) { return take(p, n); }
int cudaFree(void *p) { return free(p), 0; }
int cudaFreeHost(void *p) { return free(p), 0; }
int cudaFreeAsync(void *p, void *st) { return free(p), 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { return *available = 20ul << 30, *total = 24ul << 30, 0; }
int cudaMemPoolCreate(void **p, void *a) { return make(p); }
int cudaMemPoolGetAttribute(void *p, int a, size_t *v) { return *v = 0, 0; }

int cudaStreamCreate(void **s) { return make(s); }
int cudaStreamCreateWithFlags(void **s, unsigned f) { return make(s); }
int cudaEventCreate(void **e) { return make(e); }
int cudaEventCreateWithFlags(void **e, unsigned f) { return make(e); }
int cudaEventElapsedTime(float *ms, void *a, void *b) { return *ms = 1, 0; }
int cudaStreamIsCapturing(void *s, int *status) { return *status = capturing, 0; }
int cudaStreamBeginCapture(void *s, int mode) { return capturing = 1, 0; }
int cudaStreamEndCapture(void *s, void **graph) { return capturing = 0, make(graph); }
int cudaGraphInstantiate(void **made, void *graph, unsigned long long f) { return make(made); }
int cudaGraphLaunch(void *graph, void *s) { return replays++, 0; }

/* Of a GPU of compute capability 8.6; offsets are those of CUDA 13's cudaDeviceProp. */
int cudaGetDeviceProperties(char *facts, int device) {
  memset(facts, 0, 1008);
  strcpy(facts, "stub");
  *(size_t *)(facts + 288) = 24ul << 30; /* totalGlobalMem */
  *(size_t *)(facts + 296) = 49152;      /* sharedMemPerBlock */
  *(int *)(facts + 304) = 65536;         /* regsPerBlock */
  *(int *)(facts + 308) = 32;            /* warpSize */
  *(int *)(facts + 320) = 1024;          /* maxThreadsPerBlock */
  int sizes[] = {1024, 1024, 64, 2147483647, 65535, 65535};
  memcpy(facts + 324, sizes, sizeof sizes); /* maxThreadsDim, maxGridSize */
  *(int *)(facts + 360) = 8;                /* major */
  *(int *)(facts + 364) = 6;                /* minor */
  *(int *)(facts + 384) = 28;               /* multiProcessorCount */
  *(size_t *)(facts + 624) = 102400;        /* sharedMemPerMultiprocessor */
  *(size_t *)(facts + 672) = 101376;        /* sharedMemPerBlockOptin */
  return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 1: return *value = 1024, 0;   /* threads of a block */
    case 8: return *value = 49152, 0;  /* shared memory of a block */
    case 16: return *value = 28, 0;    /* multiprocessors */
    case 75: return *value = 8, 0;     /* compute capability */
    case 76: return *value = 6, 0;
    case 97: return *value = 101376, 0; /* shared memory of a block that asks for more */
    default: return *value = 1, 0;
  }
}

int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaGetDevice(int *device) { return *device = 0, 0; }
int cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, 0; }
int cudaGetDriverEntryPointByVersion(char *n, void **f, unsigned v, unsigned long long l, int *found) { return *f = 0, found ? *found = 1, 0 : 0; }
int cudaPointerGetAttributes(char *facts, void *p) { return memset(facts, 0, 32), *(int *)facts = 2, 0; }
int cudaFuncGetAttributes(char *facts, void *f) { return memset(facts, 0, 144), *(int *)(facts + 24) = 1024, 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count) { return *count = 2, 0; }
const char *cudaGetErrorName(int e) { return e ? "stub" : "none"; }
const char *cudaGetErrorString(int e) { return e ? "refused by the stub" : "none"; }
void **__cudaRegisterFatBinary(void *f) { static void *handle; return &handle; }

#else

typedef unsigned long long address;
typedef struct {
  size_t x, y; unsigned kind; void *host; address device; void *array; size_t pitch;
} end;
typedef struct { end source, target; size_t width, height; } order;

int cuTensorMapEncodeTiled(void) { return 0; }
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0, 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetName(char *name, int size, int device) { return strcpy(name, "stub"), 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent_v2(void *context) { return 0; }
int cuCtxPopCurrent_v2(void **context) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { return *available = 20ul << 30, *total = 24ul << 30, 0; }
int cuMemsetD8_v2(address p, unsigned char v, size_t n) { return memset((void *)p, v, n), 0; }
int cuMemcpyDtoH_v2(void *target, address source, size_t n) { return memcpy(target, (void *)source, n), 0; }
int cuMemcpyHtoD_v2(address target, void *source, size_t n) { return memcpy((void *)target, source, n), 0; }
int cuMemcpy2DUnaligned_v2(order *given) {
  for (size_t line = 0; line < given->height; line++)
    memmove((char *)given->target.device + line * given->target.pitch,
            (char *)given->source.device + line * given->source.pitch, given->width);
  return 0;
}

#endif
