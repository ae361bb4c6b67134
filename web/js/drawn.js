/**
 * Show the element of a node's widget where the page still shows that of an earlier node: ComfyUI's Vue nodes keep
 * what they drew when an undo or redo makes all nodes again, under the same ids.
 */
export function showOwn(app, node, element) {
  requestAnimationFrame(() => {
    if (element.isConnected || node.graph !== app.canvas?.graph) return;
    document.querySelector(`[data-node-id="${node.id}"] .${element.classList[0]}`)?.replaceWith(element);
  });
}
