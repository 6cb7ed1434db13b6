// NVRTC. make.py has compiled the kernels ahead of time: "compiling" a source only lists its kernels, one
// line `.entry NAME(` each, by which driver.c finds them.
//
// dfdx generates its conversions between element types from a template whose kernel is always called
// `kernel`. For that one, the two types are listed as well, as the PTX instructions that load and store them.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 1 };

typedef struct { char *source, *ptx; } Program;

static const char *ptx_type(const char *c_type) {
    return !strncmp(c_type, "double", 6) ? "f64" : !strncmp(c_type, "float", 5) ? "f32" : "x";
}

int nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers, void *texts, void *names) {
    *program = calloc(1, sizeof **program);
    return *program && ((*program)->source = strdup(source)) ? SUCCESS : OUT_OF_MEMORY;
}

int nvrtcDestroyProgram(Program **program) {
    free((*program)->source);
    free((*program)->ptx);
    free(*program);
    *program = NULL;
    return SUCCESS;
}

// Lists the types of `const Src *inp` and `Dst *out` in a kernel's parameters.
static void list_conversion(FILE *ptx, const char *parameters) {
    const char *input = strstr(parameters, "*inp"), *output = strstr(parameters, "*out");
    if (!input || !output) return;
    while (input > parameters && strncmp(input, "const ", 6)) input--;
    while (output > parameters && *output != ',') output--;
    for (output++; *output == ' ';) output++;
    fprintf(ptx, "ld.global.%s st.global.%s\n", ptx_type(input + 6), ptx_type(output));
}

int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    static const char BEFORE_NAME[] = "__global__ void ";
    size_t bytes;
    FILE *ptx = open_memstream(&program->ptx, &bytes);
    if (!ptx) return OUT_OF_MEMORY;
    for (const char *at = program->source; (at = strstr(at, BEFORE_NAME));) {
        char name[96];
        at += sizeof BEFORE_NAME - 1;
        if (sscanf(at, "%95[A-Za-z0-9_]", name) != 1) continue;
        fprintf(ptx, ".entry %s(\n", name);
        if (!strcmp(name, "kernel")) list_conversion(ptx, at);
    }
    fclose(ptx);
    return SUCCESS;
}

int nvrtcGetPTXSize(Program *program, size_t *bytes) {
    *bytes = strlen(program->ptx) + 1;
    return SUCCESS;
}
int nvrtcGetPTX(Program *program, char *ptx) {
    strcpy(ptx, program->ptx);
    return SUCCESS;
}
int nvrtcGetProgramLogSize(Program *program, size_t *bytes) {
    *bytes = 1;
    return SUCCESS;
}
int nvrtcGetProgramLog(Program *program, char *log) {
    *log = 0;
    return SUCCESS;
}
const char *nvrtcGetErrorString(int error) { return "emulated"; }
