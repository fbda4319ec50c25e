
// What models write of Markdown: code, headings, lists, bold. Everything becomes text nodes: markup of the model's is shown, not obeyed.
function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return element("code", "", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return element("strong", "", part.slice(2, -2));
    return part;
  });
}

function prose(text) {
  const found = [];
  let list = null, paragraph = [];
  const flush = () => {
    if (paragraph.length) found.push(element("p", "", ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (const line of text.split("\n")) {
    const heading = line.match(/^(#{1,6})\s+(.*)$/), item = line.match(/^\s*(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/);
    if (!item) list = null;
    if (heading) {
      flush();
      found.push(element(`h${Math.min(heading[1].length + 2, 5)}`, "", ...inline(heading[2])));
    } else if (item) {
      flush();
      const kind = item[1] ? "UL" : "OL";
      if (!list || list.tagName !== kind) {
        list = element(kind.toLowerCase());
        if (item[2]) list.start = Number(item[2]);
        found.push(list);
      }
      list.append(element("li", "", ...inline(item[3])));
    } else if (line.trim()) {
      paragraph.push(line);
    } else {
      flush();
    }
  }
  flush();
  return found;
}

function markdown(text) {
  const parts = text.split(/^[ \t]*```.*$/m); // every second one is code; the last fence may still be open
  return parts.flatMap((part, i) => (i % 2 ? [element("pre", "", element("code", "", part.replace(/^\n|\n$/g, "")))] : prose(part)));
}
