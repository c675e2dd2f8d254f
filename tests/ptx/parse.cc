// The text of a kernel becomes instructions. nvcc's PTX has thousands of registers, each written
// once; they are assigned to places by linear scan over live ranges, so that a warp's registers fit
// a CPU's cache. A place holds a register of all 32 lanes: 128 bytes, or 256 for 64 bits; registers
// of 16 bits have 32. A lane's register is touched by that lane only, so lanes that take different
// ways do not disturb one another.
//
// A warp's registers begin with the special ones (%tid.x, ...), then come the kernel's constants.
#include <algorithm>
#include <cctype>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "ptx.h"

namespace ptx {

const char* const SPECIAL_NAMES[SPECIALS] = {
    "%tid.x",   "%tid.y",   "%tid.z",   "%laneid",   "%ntid.x",   "%ntid.y",  "%ntid.z",
    "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z"};

constexpr u32 RED_ZONE = 16;      // bytes between variables of shared memory
static const char END[] = "end";  // a label no text has: of the kernel's last instruction

static bool is_name(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%';
}

// A statement, read from left to right.
struct reader {
    const kernel* k;
    const char *at, *end, *begin;

    [[noreturn]] void refuse(const char* what) const {
        std::string statement(begin, std::find(begin, end, '\n'));
        fprintf(stderr, "ptx: kernel %s: %s: \"%s\"\n", k ? k->name.c_str() : "-", what,
                statement.c_str());
        abort();
    }
    void skip() {
        for (;;) {
            while (at < end && isspace((unsigned char)*at)) at++;
            if (end - at > 1 && at[0] == '/' && at[1] == '/')
                while (at < end && *at != '\n') at++;
            else
                return;
        }
    }
    bool take(char c) {
        skip();
        if (at == end || *at != c) return false;
        at++;
        return true;
    }
    void need(char c) {
        if (!take(c)) refuse("not understood");
    }
    // Letters, digits, and the points within an instruction's name or a special register's.
    std::string_view word() {
        skip();
        const char* from = at;
        while (at < end && (is_name(*at) || *at == '.' || *at == ':')) at++;
        return {from, (size_t)(at - from)};
    }
    bool at_number() {
        skip();
        return at < end && (isdigit((unsigned char)*at) || *at == '-');
    }
    // An integer, or the bits of a float: 0f or 0d and hexadecimal digits.
    u64 number() {
        bool minus = take('-');
        std::string text(word());
        u64 value;
        if (text.size() > 2 && text[0] == '0' && strchr("fFdD", text[1]))
            value = strtoull(text.c_str() + 2, NULL, 16);
        else
            value = strtoull(text.c_str(), NULL, 0);
        return minus ? -value : value;
    }
};

// A register that the text names: virtual, until it has a place.
struct virtual_register {
    bool wide;
    s32 first = -1, last = -1, place = -1;  // positions in the code; bytes
};

struct operand_use {
    u32 entry;  // in operands
    s32 instruction;
    s32 reg;
    bool result;
};

struct family {  // %r<63>: registers %r0 .. %r62
    char kind;   // p, w, d
    s32 first;
};

struct parser {
    kernel& k;
    module& m;
    reader r;
    std::unordered_map<std::string, family> families;
    std::unordered_map<std::string, s32> labels;
    std::unordered_map<u64, s32> constants[2];  // by width: place
    std::unordered_map<std::string, u32> shared;
    std::unordered_map<std::string, u32> parameters;
    std::vector<virtual_register> registers;
    std::vector<operand_use> uses;
    std::vector<std::pair<s32, std::string>> branches;
    s32 here = -1;  // index into locations
    std::vector<std::vector<std::string>> scopes;

    parser(kernel& kernel_)
        : k(kernel_), m(*kernel_.home), r{&kernel_, kernel_.header, NULL, NULL} {
        r.begin = r.at;
        r.end = m.text.data() + m.text.size();
        k.predicates = 2;  // the constants: never, always
    }

    // -- Declarations ------------------------------------------------------------------------

    static u32 type_bytes(std::string_view type) {
        size_t digits = type.find_first_of("0123456789");
        return digits == type.npos ? 0 : (u32)atoi(type.data() + digits) / 8;
    }

    // .align A .bN name[count], or .uN .ptr .global .align A name of a parameter that points there
    struct variable {
        u32 align = 1, bytes = 0;
        std::string name;
        bool unsized = false;
    };
    variable read_variable() {
        variable v;
        std::string_view type = r.word();
        while (type == ".shared" || type == ".extern" || type == ".param") type = r.word();
        if (type == ".align") {
            v.align = (u32)r.number();
            type = r.word();
        }
        u32 element = type_bytes(type), count = 1;
        if (!element) r.refuse("an unknown type");
        if (v.align < element) v.align = element;
        std::string_view name = r.word();
        if (name == ".ptr") {
            while ((name = r.word())[0] == '.')
                if (name == ".align") r.number();
        }
        v.name = std::string(name);
        if (r.take('[')) {
            v.unsized = r.take(']');
            if (!v.unsized) {
                count = (u32)r.number();
                r.need(']');
            }
        }
        v.bytes = element * count;
        return v;
    }

    void declare_shared(const variable& v) {
        if (v.unsized) {
            shared[v.name] = ALL;  // placed last
            return;
        }
        k.shared = (k.shared + v.align - 1) / v.align * v.align;
        shared[v.name] = k.shared;
        k.shared += v.bytes + RED_ZONE;
        k.shared_declared = (k.shared_declared + v.align - 1) / v.align * v.align + v.bytes;
    }

    // A module's variable counts for the kernels that name it.
    u32 shared_address(const std::string& name) {
        auto found = shared.find(name);
        if (found == shared.end()) {
            auto of_module = m.shared.find(name);
            if (of_module == m.shared.end()) r.refuse("an unknown name");
            reader outer = r;
            r.at = r.begin = of_module->second.data();
            r.end = r.at + of_module->second.size();
            declare_shared(read_variable());
            r = outer;
            found = shared.find(name);
        }
        if (found->second == ALL) return ALL;
        return found->second;
    }

    void declare_registers() {
        std::string_view type = r.word();
        char kind = type == ".pred" ? 'p' : type_bytes(type) == 8 ? 'd' : 'w';
        do {
            std::string name(r.word());
            s32 count = 1;
            bool many = r.take('<');
            if (many) {
                count = (s32)r.number();
                r.need('>');
            }
            s32 first = kind == 'p' ? (s32)k.predicates : (s32)registers.size();
            if (kind == 'p')
                k.predicates += count;
            else
                registers.resize(registers.size() + count, virtual_register{kind == 'd'});
            families[name + (many ? "<" : "")] = {kind, first};
            if (!scopes.empty()) scopes.back().push_back(name + (many ? "<" : ""));
        } while (r.take(','));
    }

    // -- Operands ----------------------------------------------------------------------------

    family register_of(std::string_view name) {
        auto single = families.find(std::string(name));
        if (single != families.end()) return single->second;
        size_t digits = name.find_last_not_of("0123456789") + 1;
        auto many = families.find(std::string(name.substr(0, digits)) + "<");
        if (many == families.end() || digits == name.size()) r.refuse("an unknown register");
        return {many->second.kind, many->second.first + atoi(name.data() + digits)};
    }

    void value(s64 v) { k.operands.push_back((s32)v); }

    void use(s32 reg, bool result) {
        uses.push_back({(u32)k.operands.size(), (s32)k.code.size() - 1, reg, result});
        value(0);
    }

    s32 constant(u64 bits, bool wide) {
        if (!wide) bits = (u32)bits;
        auto [at, is_new] = constants[wide].try_emplace(bits, 0);
        if (is_new) {
            at->second = (s32)(SPECIAL_BYTES + k.constants.size());
            for (int l = 0; l < LANES; l++)
                for (int i = 0; i < (wide ? 8 : 4); i++) k.constants.push_back((u8)(bits >> 8 * i));
        }
        return at->second;
    }

    // A register, constant, special register or address of a variable, as an operand of this class:
    // p, w or d, in capitals where it is a result.
    void operand(char class_) {
        bool result = isupper((unsigned char)class_);
        char kind = class_ == 'U' ? 'w' : (char)tolower(class_);
        if (r.at_number()) {
            u64 bits = r.number();
            if (result) r.refuse("a constant where a register is needed");
            value(kind == 'p' ? bits != 0 : constant(bits, kind == 'd'));
            return;
        }
        std::string_view name = r.word();
        if (name == "_" && result && kind != 'p') {
            registers.push_back({kind == 'd'});
            use((s32)registers.size() - 1, true);
            return;
        }
        for (int s = 0; s < SPECIALS && name[0] == '%'; s++)
            if (name == SPECIAL_NAMES[s]) {
                if (kind != 'w' || result) r.refuse("a special register of another width");
                value(s * LANES * 4);
                return;
            }
        if (name.empty()) r.refuse("an operand is missing");
        if (name[0] != '%' && !families.count(std::string(name))) {
            u32 address = shared_address(std::string(name));
            if (result || kind == 'p') r.refuse("a variable where a register is needed");
            // The dynamic part lies behind all others, whose sizes are known at the end.
            if (address == ALL) late_dynamic.push_back({(u32)k.operands.size(), kind == 'd'});
            value(address == ALL ? 0 : constant(address, kind == 'd'));
            return;
        }
        family f = register_of(name);
        if (f.kind != kind) r.refuse("a register of another width");
        if (class_ == 'U')
            uses.push_back({(u32)k.operands.size(), (s32)k.code.size() - 1, f.first, false});
        if (kind == 'p')
            value(f.first);
        else
            use(f.first, result);
    }
    std::vector<std::pair<u32, bool>> late_dynamic;

    // [register + offset]: place, offset, whether 64 bits wide.
    void address() {
        r.need('[');
        bool wide = false, constant_ = r.at_number();
        const char* from = r.at;
        if (!constant_) {
            std::string_view name = r.word();
            if (name[0] == '%' || families.count(std::string(name)))
                wide = register_of(name).kind == 'd';
        }
        r.at = from;
        operand(wide ? 'd' : 'w');
        s64 offset = 0;
        if (r.take('+')) offset = (s64)r.number();
        value(offset);
        value(wide);
        r.need(']');
    }

    // By the letters of the table (ptx.h: opcode). Braces around vectors only group.
    void operands(const char* classes) {
        bool first = true;
        for (const char* c = classes; *c; c++) {
            if (*c == 'Q') {  // d|p
                if (r.take('|'))
                    operand('P');
                else
                    value(-1);
                continue;
            }
            if (!first) r.take('}'), r.need(','), r.take('{');
            if (first) r.take('{');
            first = false;
            if (*c == '@')
                address();
            else if (*c == 'i')
                value((s64)r.number());
            else
                operand(*c == 'm' ? 'w' : *c);
        }
        r.take('}');
    }

    // -- Instructions ------------------------------------------------------------------------

    instruction& emit(step* run, u8 flags = 0) {
        instruction i = {};
        i.run = run;
        i.text = r.begin;
        i.location = here;
        i.flags = flags;
        i.x = (const s32*)(intptr_t)k.operands.size();  // an index, until all are there
        k.code.push_back(i);
        k.synchronises |= (flags & STRONG) != 0;
        return k.code.back();
    }

    // Another leader is only needed where something was emitted since.
    void leader() {
        if (k.code.empty() || k.code.back().run != run_leader) emit(run_leader, LEADER);
        k.code.back().location = -1;
    }

    // ld and st: {.volatile}{.space}{.vN}.type, or .relaxed, .acquire or .release.gpu.global.type
    void load_or_store(std::string_view name) {
        static const std::pair<const char*, space> spaces[] = {
            {".global", GLOBAL}, {".shared", SHARED}, {".param", PARAMETER}};
        bool store = name[0] == 's';
        std::string_view rest = name.substr(2);
        space where = GENERIC;
        auto starts = [&](const char* prefix) {
            bool yes = rest.rfind(prefix, 0) == 0;
            if (yes) rest.remove_prefix(strlen(prefix));
            return yes;
        };
        s32 mode = 0;
        bool strong = starts(".relaxed.gpu");
        if (!strong && starts(store ? ".release.gpu" : ".acquire.gpu")) {
            strong = true;
            mode = store ? RELEASES : ACQUIRES;
        }
        starts(".volatile");
        for (auto& s : spaces)
            if (starts(s.first)) where = s.second;
        starts("::cta");
        starts(".nc");
        int vector = starts(".v2") ? 2 : starts(".v4") ? 4 : 1;
        u32 bytes = type_bytes(rest);
        bool known = rest.size() >= 3 && rest[0] == '.' && strchr("busf", rest[1]) && bytes &&
                     bytes <= 8 && rest.find('.', 1) == rest.npos;
        if (!known || (store && where == PARAMETER) || (strong && (where != GLOBAL || vector != 1)))
            r.refuse("an unknown instruction");
        step* const runs[2][2] = {{run_load, run_store}, {run_load_strong, run_store_strong}};
        instruction& i = emit(runs[strong][store], strong ? STRONG : 0);
        i.size = (u8)bytes;
        i.vector = (u8)vector;
        std::vector<s32>& x = k.operands;
        value(where);
        value(mode | (rest[1] == 's' ? LOAD_SIGNED : 0));
        size_t mode_at = x.size() - 1;
        // Elements first in a load, last in a store; the address stands first in x.
        if (store) {
            address();
            r.need(',');
            if (elements(vector, false)) x[mode_at] |= WIDE;
            return;
        }
        size_t elements_at = x.size();
        if (elements(vector, true)) x[mode_at] |= WIDE;
        r.need(',');
        if (where == PARAMETER) {
            r.need('[');
            auto p = parameters.find(std::string(r.word()));
            if (p == parameters.end()) r.refuse("an unknown parameter");
            u64 offset = p->second + (r.take('+') ? r.number() : 0);
            r.need(']');
            value((s64)offset), value(0), value(0);
        } else {
            address();
        }
        rotate_address(elements_at, vector);
    }

    // Registers of one width, which may be wider than what is loaded or stored; whether 64 bits.
    bool elements(int n, bool results) {
        bool braces = r.take('{'), wide = r.at_number() && k.code.back().size == 8;
        for (int e = 0; e < n; e++) {
            if (e) r.need(',');
            const char* from = r.at;
            if (!e && !r.at_number()) {
                std::string_view name = r.word();
                wide = name != "_" && register_of(name).kind == 'd';
            }
            r.at = from;
            operand(wide ? results ? 'D' : 'd' : results ? 'W' : 'w');
        }
        if (braces) r.need('}');
        return wide;
    }

    // The address was read last and stands before the elements.
    void rotate_address(size_t from, int n) {
        std::vector<s32>& x = k.operands;
        std::rotate(x.begin() + from, x.end() - 3, x.end());
        for (operand_use& u : uses) {
            if (u.entry < from || u.instruction != (s32)k.code.size() - 1) continue;
            u.entry = u.entry < from + n ? u.entry + 3 : (u32)from;
        }
        for (auto& d : late_dynamic)
            if (d.first >= from) d.first = (u32)from;
    }

    // mov with a vector on one side: {a, b} are the parts of a wider register, lowest first.
    void pack(bool packs, u32 bytes) {
        emit(packs ? run_pack : run_unpack);
        int parts = 0;
        bool wide = bytes == 8;
        auto vector = [&](bool result) {
            r.need('{');
            do {
                operand(result ? 'W' : 'w');
                parts++;
            } while (r.take(','));
            r.need('}');
        };
        value(wide);
        if (packs) {
            operand(wide ? 'D' : 'W');
            r.need(',');
            vector(false);
        } else {
            vector(true);
            r.need(',');
            operand(wide ? 'd' : 'w');
        }
        instruction& done = k.code.back();
        done.vector = (u8)parts;
        done.size = (u8)(bytes / parts);
    }

    void branch(s32 predicate, bool negated, std::string label) {
        emit(predicate < 0 ? run_branch : run_branch_if, TERMINATOR);
        if (predicate >= 0) value(predicate), value(negated);
        branches.push_back({(s32)k.code.size() - 1, std::move(label)});
    }

    void statement_instruction() {
        s32 predicate = -1;
        bool negated = false;
        if (r.take('@')) {
            negated = r.take('!');
            family f = register_of(r.word());
            if (f.kind != 'p') r.refuse("a guard that is no predicate");
            predicate = f.first;
        }
        std::string_view name = r.word();
        if (name == "bra" || name == "bra.uni") {
            branch(predicate, negated, std::string(r.word()));
            return;
        }
        if (name == "ret" || name == "exit") {
            branch(predicate, negated, END);
            return;
        }
        // A predicated instruction runs between two that narrow the mask and give it back.
        if (predicate >= 0) {
            emit(run_narrow);
            value(predicate), value(negated);
        }
        instruction_named(name);
        if (predicate >= 0) {
            if (k.code.back().flags & (SYNC | ALIGNED | BARRIER))
                r.refuse("a predicated synchronisation");
            emit(run_widen);
        }
    }

    // From wgmma.fence on the registers of sums are the products'. first: the first use by this
    // one.
    void check_sums(size_t first) {
        for (size_t i = since_fence; i < first; i++) {
            if (!uses[i].result || k.code[(u32)uses[i].instruction].run == wgmma_issue) continue;
            for (size_t n = first; n < uses.size(); n++)
                if (uses[n].result && uses[n].reg == uses[i].reg)
                    r.refuse("a sum of this wgmma is written behind the wgmma.fence");
        }
    }
    size_t since_fence = ~(size_t)0;  // uses by what follows the last wgmma.fence

    void instruction_named(std::string_view name) {
        if (name.rfind("ld.", 0) == 0 || name.rfind("st.", 0) == 0) {
            load_or_store(name);
            return;
        }
        if (name.rfind("mov.", 0) == 0) {
            reader ahead = r;
            ahead.skip();
            bool unpacks = ahead.take('{');
            while (!unpacks && ahead.at < ahead.end && *ahead.at != ',' && *ahead.at != ';')
                ahead.at++;
            bool packs = !unpacks && ahead.take(',') && ahead.take('{');
            if (packs || unpacks) {
                pack(packs, type_bytes(name.substr(3)));
                return;
            }
        }
        const opcode* o = opcode_find(name);
        if (!o) r.refuse("an unknown instruction");
        instruction& i = emit(o->run, o->flags);
        k.wgmma |= o->run == wgmma_issue;
        const char* members = strchr(o->operands, 'm');
        i.vector = (u8)(members ? members - o->operands : 0);
        size_t first = k.operands.size(), first_use = uses.size();
        operands(o->operands);
        if (o->run == wgmma_fence) since_fence = uses.size();
        if (o->run == wgmma_issue) check_sums(first_use);
        if (o->flags & BARRIER && k.operands[first + (o->flags & REDUCES ? 1 : 0)] != 0)
            r.refuse("a barrier other than number 0");
        if (o->flags & (SYNC | ALIGNED | BARRIER)) k.code.back().flags |= TERMINATOR;
    }

    // ';' ends a statement, ':' a label. Returns false at the kernel's last '}'.
    bool statement() {
        r.skip();
        r.begin = r.at;
        if (r.take('{')) {
            scopes.emplace_back();
            return true;
        }
        if (r.take('}')) {
            if (scopes.empty()) return false;
            for (const std::string& name : scopes.back()) families.erase(name);
            scopes.pop_back();
            return true;
        }
        if (*r.at == '.') {
            directive();
            return true;
        }
        if (*r.at == '$' || (*r.at != '@' && is_label())) {
            std::string name(r.word());
            if (name.back() == ':')
                name.pop_back();
            else
                r.need(':');
            leader();
            labels[name] = (s32)k.code.size() - 1;
            return true;
        }
        statement_instruction();
        r.need(';');
        if (k.code.back().flags & TERMINATOR) leader();
        return true;
    }

    bool is_label() {
        const char* p = r.at;
        while (is_name(*p)) p++;
        return *p == ':' && p[1] != ':';
    }

    void directive() {
        std::string_view name = r.word();
        if (name == ".loc") {
            location l = {(s32)r.number(), (s32)r.number(), -1};
            r.number();
            if (r.take(',')) {
                r.word(), r.word(), r.need(','), r.word();  // function_name X, inlined_at
                location outer = {(s32)r.number(), (s32)r.number(), -1};
                r.number();
                l.inlined_at = location_of(outer);
            }
            here = location_of(l);
            return;  // no ';'
        }
        if (name == ".reg")
            declare_registers();
        else if (name == ".shared")
            declare_shared(read_variable());
        else if (name == ".pragma")
            while (*r.at != ';') r.at++;
        else
            r.refuse("an unknown directive");
        r.need(';');
    }

    s32 location_of(location l) {
        u64 key = ((u64)l.file << 48) ^ ((u64)(u32)l.inlined_at << 20) ^ (u32)l.line;
        auto [at, is_new] = location_index.try_emplace(key, (s32)m.locations.size());
        if (is_new) m.locations.push_back(l);
        return at->second;
    }
    std::unordered_map<u64, s32> location_index;

    // -- The kernel --------------------------------------------------------------------------

    void header() {
        r.word();  // .entry
        r.word();  // name
        if (!r.take('(')) return;
        u32 offset = 0;
        while (!r.take(')')) {
            r.begin = r.at;
            variable v = read_variable();
            offset = (offset + v.align - 1) / v.align * v.align;
            parameters[v.name] = offset;
            k.parameters.push_back({offset, v.bytes});
            offset += v.bytes;
            r.take(',');
        }
        for (;;) {
            r.skip();
            r.begin = r.at;
            if (r.take('{')) return;
            std::string_view name = r.word();
            if (name == ".maxntid" || name == ".reqntid") {
                k.threads_limit = (u32)r.number();
                while (r.take(',')) k.threads_limit *= (u32)r.number();
            } else if (name == ".minnctapersm" || name == ".maxnreg") {
                r.number();
            } else {
                r.refuse("an unknown directive");
            }
        }
    }

    void parse() {
        header();
        leader();
        while (statement()) {
        }
        leader();
        labels[END] = (s32)k.code.size() - 1;
        emit(run_exit);
        // A multiple of 16 and of nothing larger: the runtime promises no more.
        u32 dynamic_at = (k.shared + 15) / 16 * 16 | 16;
        k.shared = dynamic_at;
        for (auto [entry, wide] : late_dynamic) k.operands[entry] = constant(dynamic_at, wide);
        for (auto& [index, label] : branches) {
            auto to = labels.find(label);
            if (to == labels.end()) r.refuse("an unknown label");
            k.code[index].target = &k.code[to->second];
        }
        assign();
        for (instruction& i : k.code) i.x = k.operands.data() + (intptr_t)i.x;
        k.parsed = true;
        profile_attach(k);
    }

    // -- Places ------------------------------------------------------------------------------

    // A stretch of code from a leader to the next; registers as sets of bits.
    struct stretch {
        s32 begin, end;
        std::vector<s32> next;
        std::vector<u64> reads, writes, in, out;  // reads: before a write of its own
    };
    std::vector<stretch> stretches;

    void find_stretches(size_t words) {
        std::vector<s32> index(k.code.size());
        for (size_t i = 0; i < k.code.size(); i++) {
            if (k.code[i].flags & LEADER) {
                std::vector<u64> empty(words);
                stretches.push_back({(s32)i, 0, {}, empty, empty, empty, empty});
            }
            stretches.back().end = (s32)i;
            index[i] = (s32)stretches.size() - 1;
        }
        for (size_t s = 0; s < stretches.size(); s++) {
            const instruction& last = k.code[stretches[s].end];
            if (last.target) stretches[s].next.push_back(index[last.target - k.code.data()]);
            if (last.run != run_branch && last.run != run_exit && s + 1 < stretches.size())
                stretches[s].next.push_back((s32)s + 1);
        }
        for (size_t u = 0; u < uses.size();) {
            size_t end = u;
            s32 at = uses[u].instruction;
            while (end < uses.size() && uses[end].instruction == at) end++;
            stretch& s = stretches[index[at]];
            // A predicated result does not replace what was there.
            bool partly = at > 0 && k.code[at - 1].run == run_narrow;
            for (size_t i = u; i < end; i++)
                if (!uses[i].result || partly) note_read(s, uses[i].reg);
            for (size_t i = u; i < end; i++)
                if (uses[i].result) s.writes[uses[i].reg / 64] |= 1ull << (uses[i].reg & 63);
            u = end;
        }
    }

    static void note_read(stretch& s, s32 reg) {
        u64 bit = 1ull << (reg & 63);
        if (!(s.writes[reg / 64] & bit)) s.reads[reg / 64] |= bit;
    }

    void flow(size_t words) {
        for (bool changed = true; changed;) {
            changed = false;
            for (size_t i = stretches.size(); i-- > 0;) {
                stretch& s = stretches[i];
                for (s32 n : s.next)
                    for (size_t w = 0; w < words; w++) s.out[w] |= stretches[n].in[w];
                for (size_t w = 0; w < words; w++) {
                    u64 in = s.reads[w] | (s.out[w] & ~s.writes[w]);
                    changed |= in != s.in[w];
                    s.in[w] = in;
                }
            }
        }
    }

    // A range reaches from the first to the last position where its register is read, written, or
    // alive at the border of a stretch.
    void extend(s32 reg, s32 position) {
        virtual_register& v = registers[reg];
        if (v.first < 0 || position < v.first) v.first = position;
        if (position > v.last) v.last = position;
    }
    void extend_all(const std::vector<u64>& set, s32 position) {
        for (size_t w = 0; w < set.size(); w++)
            for (u64 bits = set[w]; bits; bits &= bits - 1)
                extend((s32)(w * 64 + __builtin_ctzll(bits)), position);
    }

    // Linear scan. Two ranges share a place only if one ends before the other's first instruction:
    // many instructions write a lane before they have read all lanes.
    void assign() {
        size_t words = (registers.size() + 63) / 64;
        find_stretches(words);
        flow(words);
        for (const operand_use& u : uses) extend(u.reg, u.instruction);
        for (const stretch& s : stretches) extend_all(s.in, s.begin), extend_all(s.out, s.end);
        std::vector<s32> order;
        for (size_t i = 0; i < registers.size(); i++)
            if (registers[i].first >= 0) order.push_back((s32)i);
        auto by_first = [&](s32 a, s32 b) { return registers[a].first < registers[b].first; };
        std::sort(order.begin(), order.end(), by_first);
        k.registers = SPECIAL_BYTES + (u32)k.constants.size();
        std::vector<s32> free_places[2];
        std::vector<std::pair<s32, s32>> active;  // (last, register), a heap: the earliest on top
        for (s32 reg : order) {
            virtual_register& v = registers[reg];
            while (!active.empty() && -active.front().first < v.first) {
                virtual_register& done = registers[active.front().second];
                free_places[done.wide].push_back(done.place);
                std::pop_heap(active.begin(), active.end());
                active.pop_back();
            }
            if (free_places[v.wide].empty()) {
                v.place = (s32)k.registers;
                k.registers += LANES * (v.wide ? 8 : 4);
            } else {
                v.place = free_places[v.wide].back();
                free_places[v.wide].pop_back();
            }
            active.push_back({-v.last, reg});
            std::push_heap(active.begin(), active.end());
        }
        for (const operand_use& u : uses) k.operands[u.entry] = registers[u.reg].place;
    }
};

void kernel_parse(kernel& k) {
    parser p(k);
    p.parse();
}

// ------------------------------------------------------------------------------------------------
// Modules

static std::string_view line_at(const std::string& text, size_t at) {
    size_t end = text.find('\n', at);
    return std::string_view(text).substr(at, end == text.npos ? end : end - at);
}

std::unique_ptr<module> module_read(std::string text) {
    auto m = std::make_unique<module>();
    m->text = std::move(text);
    const std::string& t = m->text;
    // At the start of a line: an entry, perhaps .visible; a variable of the module; a file.
    for (size_t at = 0; at < t.size(); at = t.find('\n', at) + 1) {
        std::string_view line = line_at(t, at);
        if (line.rfind(".visible ", 0) == 0 || line.rfind(".weak ", 0) == 0)
            line.remove_prefix(line.find(' ') + 1);
        if (line.rfind(".entry ", 0) == 0) {
            std::string name(line.substr(7, line.find_first_of("( \r", 7) - 7));
            kernel& k = m->kernels[name];
            k.home = m.get();
            k.name = name;
            k.header = line.data();
            k.threads_limit = THREADS_MAX;
            k.dynamic_limit = SHARED_DEFAULT;
        } else if (line.rfind(".shared ", 0) == 0 || line.rfind(".extern .shared ", 0) == 0) {
            size_t name = line.find_last_of(' ') + 1;
            m->shared[line.substr(name, line.find_first_of("[;", name) - name)] = line;
        } else if (line.find(".file") != line.npos && line.find('"') != line.npos) {
            size_t number = (size_t)atoi(line.data() + line.find(".file") + 5);
            size_t from = line.find('"') + 1;
            if (m->files.size() <= number) m->files.resize(number + 1);
            m->files[number] = std::string(line.substr(from, line.find('"', from) - from));
        } else if (line.rfind(".func", 0) == 0 || line.rfind(".const", 0) == 0 ||
                   line.rfind(".global", 0) == 0) {
            fprintf(stderr, "ptx: unknown in a module: \"%s\"\n", std::string(line).c_str());
            abort();
        }
        if (t.find('\n', at) == t.npos) break;
    }
    return m;
}

std::string place_text(const module& m, s32 at) {
    std::string text;
    for (; at >= 0; at = m.locations[at].inlined_at) {
        const location& l = m.locations[at];
        if (!text.empty()) text += ", inlined at ";
        text += (size_t)l.file < m.files.size() ? m.files[l.file] : "?";
        text += ":" + std::to_string(l.line);
    }
    return text.empty() ? "no source line" : text;
}

}  // namespace ptx
