import java.io.Reader;
import java.util.Collections;
import java.util.List;
import javax.script.AbstractScriptEngine;
import javax.script.Bindings;
import javax.script.ScriptContext;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineFactory;
import javax.script.SimpleBindings;

/**
 * SPICE 1.0 has its result indented by the JavaScript that Java had until version 14, and fails where there is none.
 * This stands in for it: whatever the script, the variable "result" becomes the unindented text in "jsonString".
 *
 * <p>PlainJson.class is this file compiled by: javac --release 8 -g:none PlainJson.java
 */
public class PlainJson extends AbstractScriptEngine implements ScriptEngineFactory {
    public Object eval(String script, ScriptContext context) {
        context.setAttribute("result", context.getAttribute("jsonString"), ScriptContext.ENGINE_SCOPE);
        return null;
    }

    public Object eval(Reader script, ScriptContext context) { return eval("", context); }
    public Bindings createBindings() { return new SimpleBindings(); }
    public ScriptEngineFactory getFactory() { return this; }

    public ScriptEngine getScriptEngine() { return new PlainJson(); }
    public List<String> getNames() { return Collections.singletonList("JavaScript"); }
    public List<String> getExtensions() { return Collections.emptyList(); }
    public List<String> getMimeTypes() { return Collections.emptyList(); }
    public String getEngineName() { return "PlainJson"; }
    public String getEngineVersion() { return "1"; }
    public String getLanguageName() { return "none"; }
    public String getLanguageVersion() { return "1"; }
    public Object getParameter(String key) { return null; }
    public String getMethodCallSyntax(String object, String method, String... arguments) { return ""; }
    public String getOutputStatement(String text) { return ""; }
    public String getProgram(String... statements) { return ""; }
}
