// MPI (MPI: A Message-Passing Interface Standard, version 3.1), of which one call carries
// everything: MPI_Sendrecv of bytes. The library is opened when a launcher's variables say that
// there are several processes, so the program needs none to be built or to start alone. There are
// two binary interfaces: Open MPI's handles are addresses of the library's objects, those of MPICH
// and its kin (Intel MPI, MVAPICH, Cray MPICH) are numbers.
#include <dlfcn.h>
#include <stdlib.h>

#include "ranks.h"

enum {
    MPICH_WORLD = 0x44000000,
    MPICH_BYTE = 0x4c00010d,
    MPICH_NULL = -1,     // MPI_PROC_NULL
    OPEN_MPI_NULL = -2,  // likewise
    TAG = 1,
    MOST_BYTES = 1 << 30  // of a call: counts are ints
};

typedef int sendrecv_open_mpi(const void*, int, void*, int, int, void*, int, void*, int, int, void*,
                              void*);
typedef int sendrecv_mpich(const void*, int, int, int, int, void*, int, int, int, int, int, void*);

typedef struct mpi {
    void *library, *world, *byte;  // Open MPI's handles; NULL: MPICH's interface
    void* sendrecv;
} mpi;

static void* symbol(const mpi* m, const char* name) {
    void* address = dlsym(m->library, name);
    if (!address) fatal("the MPI library has no %s; use Open MPI or MPICH", name);
    return address;
}

// Whether an environment variable holds a number above 1.
static int several(const char* variable) {
    const char* text = getenv(variable);
    return text && atoi(text) > 1;
}

static void* open_first(const char* const* names) {
    void* library = NULL;
    for (; *names && !library; names++) library = dlopen(*names, RTLD_NOW | RTLD_GLOBAL);
    return library;
}

// The library of the launcher: srun may belong to either.
static void* open_library(void) {
    static const char* const open_mpi[] = {"libmpi.so.40", "libmpi.so.80", "libmpi.so", NULL};
    static const char* const mpich[] = {"libmpich.so.12", "libmpi.so.12", "libmpich.so", NULL};
    void* library = several("PMI_SIZE") ? open_first(mpich) : open_first(open_mpi);
    if (!library) library = open_first(several("PMI_SIZE") ? open_mpi : mpich);
    if (!library)
        fatal(
            "a launcher started several processes, and no MPI library is found: %s; install "
            "Open MPI or MPICH, or name its folder in LD_LIBRARY_PATH",
            dlerror());
    return library;
}

static void mpi_exchange(ranks* r, int to, const void* out, size_t out_bytes, int from, void* in,
                         size_t in_bytes) {
    const mpi* m = r->context;
    const char* o = out;
    char* i = in;
    int none = m->world ? OPEN_MPI_NULL : MPICH_NULL;
    while (out_bytes || in_bytes) {
        int sends = out_bytes < MOST_BYTES ? (int)out_bytes : MOST_BYTES;
        int gets = in_bytes < MOST_BYTES ? (int)in_bytes : MOST_BYTES;
        int target = sends ? to : none, origin = gets ? from : none;
        int failed =
            m->world
                ? ((sendrecv_open_mpi*)m->sendrecv)(o, sends, m->byte, target, TAG, i, gets,
                                                    m->byte, origin, TAG, m->world, NULL)
                : ((sendrecv_mpich*)m->sendrecv)(o, sends, MPICH_BYTE, target, TAG, i, gets,
                                                 MPICH_BYTE, origin, TAG, MPICH_WORLD, (void*)1);
        if (failed) fatal("MPI_Sendrecv failed with error %d; is another rank gone?", failed);
        o += sends;
        i += gets;
        out_bytes -= (size_t)sends;
        in_bytes -= (size_t)gets;
    }
}

static void mpi_abort(ranks* r) {
    const mpi* m = r->context;
    void* end = symbol(m, "MPI_Abort");
    if (m->world)
        ((int (*)(void*, int))end)(m->world, 1);
    else
        ((int (*)(int, int))end)(MPICH_WORLD, 1);
}

static void mpi_close(ranks* r) {
    const mpi* m = r->context;
    ((int (*)(void))symbol(m, "MPI_Finalize"))();
}

// MPI_Comm_rank or MPI_Comm_size.
static int ask_world(const mpi* m, const char* name) {
    int answer = 0;
    void* ask = symbol(m, name);
    if (m->world)
        ((int (*)(void*, int*))ask)(m->world, &answer);
    else
        ((int (*)(int, int*))ask)(MPICH_WORLD, &answer);
    return answer;
}

// What launchers call the number of processes on this machine, and which of them this one is; the
// environment's number of the first name that is there, else `otherwise`.
static const char* const HERE[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                                   "SLURM_NTASKS_PER_NODE", NULL};
static const char* const PLACE[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                    "SLURM_LOCALID", NULL};
static int number_of(const char* const* names, int otherwise) {
    for (; *names; names++)
        if (getenv(*names)) return atoi(getenv(*names));
    return otherwise;
}

ranks* ranks_open_mpi(void) {
    if (!several("OMPI_COMM_WORLD_SIZE") && !several("PMI_SIZE") &&
        !several("SLURM_STEP_NUM_TASKS"))
        return NULL;
    static mpi m;
    static ranks r;
    m.library = open_library();
    m.world = dlsym(m.library, "ompi_mpi_comm_world");
    m.byte = dlsym(m.library, "ompi_mpi_byte");
    m.sendrecv = symbol(&m, "MPI_Sendrecv");
    if (((int (*)(void*, void*))symbol(&m, "MPI_Init"))(NULL, NULL))
        fatal("MPI_Init failed; is the library that of the launcher?");
    r = (ranks){.rank = ask_world(&m, "MPI_Comm_rank"),
                .size = ask_world(&m, "MPI_Comm_size"),
                .here = number_of(HERE, 1),
                .place = number_of(PLACE, 0),
                .exchange = mpi_exchange,
                .abort = mpi_abort,
                .close = mpi_close,
                .context = &m};
    if (r.size == 1)
        fatal(
            "a launcher started several processes, and the MPI library found is not its own: "
            "each process is alone in it; name the folder of the right one in LD_LIBRARY_PATH");
    return &r;
}
